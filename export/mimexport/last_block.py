"""The last transformer block, computed only for the tokens that are read.

Keys and values need every token; queries, attention output, projection and MLP run on the chosen rows alone. The result
is exactly what timm's block gives for those rows.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models import beit, eva, hiera, vision_transformer
from torch import Tensor, nn

Rows = slice | Tensor
"""Which tokens to compute: a slice, the same for every image, or indices (B, k) int64."""

ALL = slice(None)
CLS = slice(0, 1)

_PRE_NORM = (vision_transformer.Block, eva.EvaBlock, beit.Block, hiera.HieraBlock)
_POST_NORM = (vision_transformer.ResPostBlock, eva.EvaBlockPostNorm)
_ATTENTION = (Attention, AttentionRope, eva.EvaAttention, beit.Attention, hiera.MaskUnitAttention)


def take(tokens: Tensor, rows: Rows) -> Tensor:
    """Return the chosen rows of `tokens` (B, S, D) as (B, k, D)."""
    if isinstance(rows, slice):
        return tokens[:, rows]
    return tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def can_reduce(block: Any) -> bool:
    """Say whether `block` is of a kind whose rows can be computed one by one."""
    if type(block) not in _PRE_NORM + _POST_NORM or type(block.attn) not in _ATTENTION:
        return False
    if isinstance(block, hiera.HieraBlock):
        # Pooling between stages mixes rows; windowed attention depends on their order.
        return not block.do_expand and block.attn.q_stride == 1 and not block.attn.use_mask_unit_attn
    return True


class FullBlock(nn.Module):
    """A block of any other kind: computed whole, then the chosen rows are taken."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor, rows: Rows = ALL) -> Tensor:
        """Return rows (B, k, D) of the block's output for tokens (B, S, D)."""
        return take(self.block(tokens), rows)


class ReducedBlock(nn.Module):
    """A timm block, computed for chosen rows.

    Args:
        block: a block for which `can_reduce` holds.
        rope: rotary table (S, h, 2d), h = heads or 1, the identity for prefix tokens.
        bias: relative position bias (S, heads, S), added to the attention scores.

    """

    rope: Tensor | None
    bias: Tensor | None

    def __init__(self, block: Any, rope: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        attn = block.attn
        self.post_norm = isinstance(block, _POST_NORM)
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.scale1, self.scale2 = (_layer_scale(block, i) for i in (1, 2))
        self.heads: int = attn.heads if isinstance(attn, hiera.MaskUnitAttention) else attn.num_heads
        self.kv_heads: int = getattr(attn, "num_kv_heads", self.heads)
        self.scale: float = attn.scale
        self.rotate_half: bool = getattr(attn, "rotate_half", False)
        self.query, self.key_value = _split_projection(attn)
        self.q_norm, self.k_norm = (getattr(attn, name, nn.Identity()) for name in ("q_norm", "k_norm"))
        self.attn_norm = getattr(attn, "norm", nn.Identity())
        self.gate = getattr(attn, "gate", None)
        self.proj = attn.proj
        self.register_buffer("rope", rope, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, tokens: Tensor, rows: Rows = ALL) -> Tensor:
        """Return rows (B, k, D) of the block's output for tokens (B, S, D)."""
        x = take(tokens, rows)
        if self.post_norm:
            x = x + self.norm1(self._attend(tokens, rows))
            return x + self.norm2(self.mlp(x))
        x = x + self.scale1(self._attend(self.norm1(tokens), rows))
        return x + self.scale2(self.mlp(self.norm2(x)))

    def attention(self, tokens: Tensor, rows: Rows = CLS) -> Tensor:
        """Return the attention (B, heads, k, S) of the chosen rows to every token, in float32; rows sum to one."""
        context = tokens if self.post_norm else self.norm1(tokens)
        key, _ = self._keys_values(context)
        return self._scores(take(context, rows), key, rows).float().softmax(-1)

    def _attend(self, context: Tensor, rows: Rows) -> Tensor:
        queries = take(context, rows)
        key, value = self._keys_values(context)
        weights = self._scores(queries, key, rows).softmax(-1)
        out = self.attn_norm((weights @ value).transpose(1, 2).flatten(2))
        if self.gate is not None:
            out = out * self.gate(queries).sigmoid()
        return self.proj(out)

    def _keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.key_value(context).chunk(2, -1)
        key = self._rotate(self.k_norm(_split_heads(key, self.kv_heads)), ALL)
        value = _split_heads(value, self.kv_heads)
        groups = self.heads // self.kv_heads
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return key, value

    def _scores(self, queries: Tensor, key: Tensor, rows: Rows) -> Tensor:
        query = self._rotate(self.q_norm(_split_heads(self.query(queries), self.heads)), rows)
        scores = (query * self.scale) @ key.transpose(-2, -1)
        return scores if self.bias is None else scores + _rows_of(self.bias, rows)

    def _rotate(self, x: Tensor, rows: Rows) -> Tensor:
        if self.rope is None:
            return x
        return apply_rot_embed_cat(x, _rows_of(self.rope, rows), half=self.rotate_half)


def _rows_of(table: Tensor, rows: Rows) -> Tensor:
    """Return rows of a table (S, heads, C) as (B or 1, heads, k, C)."""
    return (table[rows].unsqueeze(0) if isinstance(rows, slice) else table[rows]).transpose(1, 2)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _split_projection(attn: Any) -> tuple[nn.Linear, nn.Linear]:
    """Return the query projection and the joined key-value projection of any of timm's attention classes."""
    if attn.qkv is None:
        parts = (attn.q_proj, attn.k_proj, attn.v_proj)
        weights = [part.weight for part in parts]
        biases = [part.bias for part in parts]
    else:
        width = attn.qkv.weight.shape[0] // 3
        weights = list(attn.qkv.weight.split(width))
        if attn.qkv.bias is not None:
            biases = list(attn.qkv.bias.split(width))
        else:
            biases = [getattr(attn, name, None) for name in ("q_bias", "k_bias", "v_bias")]
    return _linear(weights[:1], biases[:1]), _linear(weights[1:], biases[1:])


def _linear(weights: list[Tensor], biases: list[Tensor | None]) -> nn.Linear:
    weight = torch.cat(weights).detach()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=any(bias is not None for bias in biases))
    linear.weight = nn.Parameter(weight)
    if linear.bias is not None:
        pairs = zip(biases, weights, strict=True)
        linear.bias = nn.Parameter(torch.cat([w.new_zeros(len(w)) if b is None else b for b, w in pairs]).detach())
    return linear


class _Scale(nn.Module):
    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def _layer_scale(block: nn.Module, index: int) -> nn.Module:
    """Return branch `index`'s layer scale, which timm keeps as a module `ls1` or a parameter `gamma_1`."""
    gamma = getattr(block, f"gamma_{index}", None)
    if gamma is not None:
        return _Scale(gamma)
    scale = getattr(block, f"ls{index}", None)
    return nn.Identity() if scale is None else scale
