"""timm's transformer blocks, rewritten to compute chosen rows only; attention is explicit and the same for every class.

Keys and values need every token. Queries, attention output, projection and MLP run on the chosen rows only. The scale and
shift of a norm are folded into the products that follow it. The result equals timm's block for those rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from timm.layers import Attention, AttentionRope, GluMlp, Mlp, SwiGLU
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models import beit, eva, hiera, vision_transformer
from torch import Tensor, nn

from mimruntime.errors import OptionError

Rows = slice | Tensor
"""Which tokens to compute: a slice or indices (k,) int64, the same for every image, or indices (B, k)."""

ALL = slice(None)
CLS = slice(0, 1)

_PRE_NORM = (vision_transformer.Block, eva.EvaBlock, beit.Block, hiera.HieraBlock)
_POST_NORM = (vision_transformer.ResPostBlock, eva.EvaBlockPostNorm)
_MLP_ENTRIES = {Mlp: ("fc1",), GluMlp: ("fc1",), SwiGLU: ("fc1_g", "fc1_x")}
"""The first linear layers of an MLP, by class."""
_ATTENTION = (Attention, AttentionRope, eva.EvaAttention, beit.Attention, hiera.MaskUnitAttention)


def take(tokens: Tensor, rows: Rows) -> Tensor:
    """Return the chosen rows of `tokens` (B, S, D) as (B, k, D)."""
    if isinstance(rows, slice) or rows.ndim == 1:
        return tokens[:, rows]
    return tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def open_block(block: Any, rope: Tensor | None = None, bias: Tensor | None = None) -> OpenBlock | ClosedBlock:
    """Return an `OpenBlock` if rows of `block` can be computed independently, else a `ClosedBlock`.

    Args:
        block: a timm block.
        rope: see `OpenBlock`.
        bias: see `OpenBlock`.

    Raises:
        OptionError: the block's class is not supported, and it needs relative positions.

    """
    if type(block) not in _PRE_NORM + _POST_NORM or type(block.attn) not in _ATTENTION:
        if rope is not None or bias is not None:
            raise OptionError(
                f"blocks of class {type(block).__name__} are not supported with relative positions; choose"
                " another --model"
            )
        return ClosedBlock(block)
    # Hiera's pooling between stages mixes rows, and its windowed attention depends on their order.
    mixes = isinstance(block, hiera.HieraBlock) and (
        block.do_expand or block.attn.q_stride != 1 or block.attn.use_mask_unit_attn
    )
    return ClosedBlock(block) if mixes else OpenBlock(block, rope, bias)


class ClosedBlock(nn.Module):
    """Any other block: it computes all rows, then selects the chosen ones."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor, rows: Rows = ALL, _: Tensor | None = None) -> Tensor:
        """Return rows (B, k, D) of the block's output for tokens (B, S, D)."""
        return take(self.block(tokens), rows)

    def keep_positions(self, _: Tensor) -> None:
        """Do nothing: this block has no position table."""

    def mean(self, tokens: Tensor, rows: Rows = ALL, _: Tensor | None = None) -> Tensor:
        """Return the mean (B, D) of rows of the block's output, in float32."""
        return self(tokens, rows).float().mean(1)


class OpenBlock(nn.Module):
    """A timm block that computes chosen rows only.

    Query, key and value are separate products. timm's packed product would need transposes that engines do not fuse
    (docs/results/graph.md). The scale and shift of a norm are folded into the weights of the products after it, because
    OpenVINO would apply them in a separate pass over the tokens.

    Args:
        block: a timm block.
        rope: rotary table (S, h, 2d), h = heads or 1; the identity for prefix tokens.
        bias: relative position bias (S, heads, S), added to the attention scores.

    """

    rope: Tensor | None
    bias: Tensor | None

    def __init__(self, block: Any, rope: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        attn = block.attn
        self.post_norm = isinstance(block, _POST_NORM)
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.mlp_in, self.mlp_out = _split_mlp(block.mlp)
        self.scale1, self.scale2 = (_layer_scale(block, i) for i in (1, 2))
        self.heads: int = attn.heads if isinstance(attn, hiera.MaskUnitAttention) else attn.num_heads
        self.kv_heads: int = getattr(attn, "num_kv_heads", self.heads)
        self.scale: float = attn.scale
        self.rotate_half: bool = getattr(attn, "rotate_half", False)
        self.query, self.key, self.value = _projections(attn)
        self.q_norm, self.k_norm = (getattr(attn, name, nn.Identity()) for name in ("q_norm", "k_norm"))
        self.attn_norm = getattr(attn, "norm", nn.Identity())
        self.gate = getattr(attn, "gate", None)
        self.proj = attn.proj
        if not self.post_norm:
            self._fold_norms()
        self.register_buffer("rope", rope, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    @property
    def positional(self) -> bool:
        """Whether attention uses a position table."""
        return self.rope is not None or self.bias is not None

    def keep_positions(self, places: Tensor) -> None:
        """Reduce the position tables to the rows `places` (S',), the tokens kept in every image."""
        if self.rope is not None:
            self.rope = self.rope[places]
        if self.bias is not None:
            self.bias = self.bias[places][:, :, places].contiguous()

    def forward(self, tokens: Tensor, rows: Rows = ALL, places: Tensor | None = None) -> Tensor:
        """Return rows (B, k, D) of the block's output for tokens (B, S, D).

        Args:
            tokens: the block's input.
            rows: which rows of the output to compute.
            places: row of the position tables for each token, (B, S); None if token i uses row i.

        """
        x = self._attended(tokens, rows, places)
        if self.post_norm:
            return x + self.norm2(self.mlp_out(self.mlp_in(x)))
        return x + self.scale2(self.mlp_out(self.mlp_in(self.norm2(x))))

    def mean(self, tokens: Tensor, rows: Rows = ALL, places: Tensor | None = None) -> Tensor:
        """Return the mean (B, D) of rows of the block's output, in float32; see `forward`.

        With pre-norm blocks the input of the MLP's last product is averaged, so that product runs once per image.
        """
        if self.post_norm:
            return self(tokens, rows, places).float().mean(1)
        x = self._attended(tokens, rows, places)
        wide = self.mlp_in(self.norm2(x)).float().mean(1).to(x.dtype)
        return x.float().mean(1) + self.scale2(self.mlp_out(wide)).float()

    def attention(self, tokens: Tensor, rows: Rows = CLS, places: Tensor | None = None) -> Tensor:
        """Return the attention (B, heads, k, S) of the chosen rows to every token, in float32; rows sum to one."""
        context = tokens if self.post_norm else self.norm1(tokens)
        return self._scores(context, rows, places).float().softmax(-1)

    def _attended(self, tokens: Tensor, rows: Rows, places: Tensor | None) -> Tensor:
        """Return rows (B, k, D) of the tokens after the attention branch."""
        if self.post_norm:
            return take(tokens, rows) + self.norm1(self._attend(tokens, rows, places))
        return take(tokens, rows) + self.scale1(self._attend(self.norm1(tokens), rows, places))

    def _fold_norms(self) -> None:
        self.query, self.key, self.value = (_after(self.norm1, linear) for linear in (self.query, self.key, self.value))
        self.gate = None if self.gate is None else _after(self.norm1, self.gate)
        self.norm1 = _plain(self.norm1)
        if type(self.mlp_in) in _MLP_ENTRIES:
            for name in _MLP_ENTRIES[type(self.mlp_in)]:
                setattr(self.mlp_in, name, _after(self.norm2, getattr(self.mlp_in, name)))
            self.norm2 = _plain(self.norm2)

    def _attend(self, context: Tensor, rows: Rows, places: Tensor | None) -> Tensor:
        weights = self._scores(context, rows, places).softmax(-1)
        out = self.attn_norm((weights @ self._per_head(self.value(context))).transpose(1, 2).flatten(2))
        if self.gate is not None:
            out = out * self.gate(take(context, rows)).sigmoid()
        return self.proj(out)

    def _scores(self, context: Tensor, rows: Rows, places: Tensor | None) -> Tensor:
        query = self._placed(self.query(take(context, rows)), self.heads, self.q_norm, _places_of(places, rows))
        key = self._placed(self.key(context), self.kv_heads, self.k_norm, _places_of(places, ALL))
        scores = (_split_heads(query, self.heads) * self.scale) @ self._per_head(key).transpose(-2, -1)
        if self.bias is None:
            return scores
        bias = _rows_of(self.bias, _places_of(places, rows))
        if places is not None:
            bias = bias.gather(3, places[:, None, None].expand(-1, *bias.shape[1:3], -1))
        return scores + bias.transpose(1, 2)

    def _per_head(self, x: Tensor) -> Tensor:
        """Return keys or values (B, S, kv_heads · d) as (B, heads, S, d)."""
        x = _split_heads(x, self.kv_heads)
        groups = self.heads // self.kv_heads
        return x.repeat_interleave(groups, 1) if groups > 1 else x

    def _placed(self, x: Tensor, heads: int, norm: nn.Module, rows: Rows) -> Tensor:
        """Return queries or keys (B, k, heads · d), normalised and rotated head by head."""
        if self.rope is None and isinstance(norm, nn.Identity):
            return x
        x = norm(x.unflatten(-1, (heads, -1)))
        if self.rope is not None:
            x = apply_rot_embed_cat(x, _rows_of(self.rope, rows), half=self.rotate_half)
        return x.flatten(2)


def _split_mlp(mlp: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Split an MLP into everything before its last linear layer, and that layer; an unknown class is not split."""
    if type(mlp) not in _MLP_ENTRIES:
        return mlp, nn.Identity()
    mlp_in = copy.copy(mlp)
    mlp_in._modules = dict(mlp._modules)  # leave timm's module unchanged
    mlp_out: Any = mlp_in.fc2
    mlp_in.fc2 = nn.Identity()
    return mlp_in, mlp_out


def _places_of(places: Tensor | None, rows: Rows) -> Rows:
    """Return the position-table rows of the tokens `rows`."""
    if places is None:
        return rows
    return places.gather(1, rows) if isinstance(rows, Tensor) and rows.ndim > 1 else places[:, rows]


def _rows_of(table: Tensor, rows: Rows) -> Tensor:
    """Return rows of a table (S, heads, C) as (B or 1, k, heads, C)."""
    return table[rows] if isinstance(rows, Tensor) and rows.ndim > 1 else table[rows].unsqueeze(0)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _projections(attn: Any) -> Iterator[nn.Linear]:
    """Yield the query, key and value projections of a timm attention module."""
    if attn.qkv is None:
        yield from (attn.q_proj, attn.k_proj, attn.v_proj)
        return
    weights = attn.qkv.weight.chunk(3)
    if attn.qkv.bias is not None:
        biases = attn.qkv.bias.chunk(3)
    else:
        biases = tuple(getattr(attn, name, None) for name in ("q_bias", "k_bias", "v_bias"))
    for weight, bias in zip(weights, biases, strict=True):
        yield _linear(weight.clone(), None if bias is None else bias.clone())


def _after(norm: Any, linear: Any) -> nn.Linear:
    """Fold a norm's scale g and shift b into `linear`: W (g * x + b) + c = (W diag(g)) x + (W b + c)."""
    weight, bias = linear.weight, linear.bias
    if getattr(norm, "bias", None) is not None:
        bias = weight @ norm.bias if bias is None else weight @ norm.bias + bias
    return _linear(weight if norm.weight is None else weight * norm.weight, bias)


def _plain(norm: Any) -> nn.Module:
    """Return a copy of the norm with scale 1 and shift 0."""
    plain = copy.deepcopy(norm)
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        if getattr(plain, name, None) is not None:
            nn.init.constant_(getattr(plain, name), value)
    return plain


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


class _Scale(nn.Module):
    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def _layer_scale(block: nn.Module, index: int) -> nn.Module:
    """Return the layer scale of branch `index`; timm stores it as a module `ls1` or a parameter `gamma_1`."""
    gamma = getattr(block, f"gamma_{index}", None)
    if gamma is not None:
        return _Scale(gamma)
    scale = getattr(block, f"ls{index}", None)
    return nn.Identity() if scale is None else scale
