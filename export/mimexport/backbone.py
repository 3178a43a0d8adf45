"""A timm vision transformer, opened between its last two blocks so that an aggregator reads only what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mimexport.last_block import FullBlock, ReducedBlock, can_reduce
from mimruntime.errors import OptionError


@dataclass(frozen=True, slots=True)
class Shape:
    """What an aggregator must know of a backbone before it runs.

    Attributes:
        dim: width D of a token.
        grid: patch tokens at the output, rows and columns.
        prefix: number of [cls] and register tokens in front of the patches.
        has_cls: whether the first prefix token is [cls].

    """

    dim: int
    grid: tuple[int, int]
    prefix: int
    has_cls: bool

    @property
    def patches(self) -> int:
        """Number N of patch tokens."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A timm model taken apart: how its last block's input is computed, and the constants that block needs."""

    enter: Callable[[Tensor], Tensor]
    rope: Tensor | None = None
    bias: Tensor | None = None


class Backbone(nn.Module):
    """The frozen model: images (B, 3, H, W) -> tokens entering the last block (B, S, D), and that block.

    Args:
        model: a timm VisionTransformer, Eva, Beit or Hiera with its weights loaded, `num_classes=0`; it is changed in
            place (position tables baked, fused attention off).

    Attributes:
        shape: token width, grid and prefix.
        last_block: the last block, callable for chosen rows.
        norm: the final norm of every token, or None where the model keeps it after the pool.
        pool_norm: the norm the model keeps after the pool, or None.

    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        opener = next((open_ for kind, open_ in _OPENERS.items() if isinstance(model, kind)), None)
        if opener is None:
            known = ", ".join(kind.__name__ for kind in _OPENERS)
            raise OptionError(f"{type(model).__name__} is not a supported backbone class; supported: {known}")
        timm_model: Any = model
        # Explicit q·scale @ kᵀ, softmax, @ v: exporters and TensorRT do not agree on how the fused form scales.
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", False)  # noqa: B010 - nn.Module types attributes as tensors
        self.model = model.eval().requires_grad_(False)
        with torch.no_grad():
            opened = opener(timm_model)
        last = timm_model.blocks[-1]
        self.reduced = can_reduce(last)
        self.last_block: ReducedBlock | FullBlock = (
            ReducedBlock(last, opened.rope, opened.bias) if self.reduced else FullBlock(last)
        )
        self._enter = opened.enter
        head = getattr(model, "head", None)
        self.norm = _real(getattr(model, "norm", None))
        self.pool_norm = _real(getattr(model, "fc_norm", None)) or _real(getattr(head, "norm", None))
        self.shape = _shape(timm_model)

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens (B, S, D) that enter the last block, prefix first, patches in row-major order."""
        return self._enter(images)


def _open_vit(model: Any) -> _Opened:
    def enter(images: Tensor) -> Tensor:
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        return _run(model.blocks[:-1], tokens)

    return _Opened(enter)


def _open_eva(model: Any) -> _Opened:
    rope = None
    per_block = bool(getattr(model, "rope_mixed", False))
    if model.rope is not None:
        has_shape = hasattr(model.rope, "feat_shape")
        rope = model.rope.get_embed() if has_shape else model.rope.get_embed(shape=model.patch_embed.grid_size)
        # The angles are constants of the grid; computed in the graph they become If, Tile and ScatterND.
        model.rope = _FixedRope(rope)

    def enter(images: Tensor) -> Tensor:
        tokens, rope = model._pos_embed(model.patch_embed(images))
        tokens = model.norm_pre(tokens)
        for i, block in enumerate(model.blocks[:-1]):
            tokens = block(tokens, rope=rope[i] if per_block else rope)
        return tokens

    if rope is None:
        return _Opened(enter)
    return _Opened(enter, rope=_rope_rows(rope[-1] if per_block else rope, model.num_prefix_tokens))


def _open_beit(model: Any) -> _Opened:
    for block in model.blocks:
        _bake_bias(block.attn)
    shared = None if model.rel_pos_bias is None else model.rel_pos_bias()
    last: Any = model.blocks[-1].attn
    parts = [part for part in (shared, last._get_rel_pos_bias() if last.window_size else None) if part is not None]

    def enter(images: Tensor) -> Tensor:
        tokens = model.patch_embed(images)
        tokens = torch.cat((model.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        if model.pos_embed is not None:
            tokens = tokens + model.pos_embed
        for block in model.blocks[:-1]:
            tokens = block(tokens, shared_rel_pos_bias=None if shared is None else shared.to(tokens.dtype))
        return tokens

    # ([1,] heads, S, S) -> (S, heads, S): the rows that are asked for come first
    return _Opened(enter, bias=sum(parts).squeeze(0).transpose(0, 1).clone() if parts else None)


def _open_hiera(model: Any) -> _Opened:
    if not can_reduce(model.blocks[-1]):
        raise OptionError("this Hiera pools in its last block; its patch tokens cannot be scored where they enter it")
    if model.pos_embed_win is not None:
        # The window position table is resized with antialiasing, which no engine does: bake the sum.
        zero = model.pos_embed_win.new_zeros(())
        model.pos_embed = nn.Parameter(model._pos_embed(zero), requires_grad=False)
        model.pos_embed_win = None

    def enter(images: Tensor) -> Tensor:
        tokens = model.unroll(model._pos_embed(model.patch_embed(images)))
        tokens = _run(model.blocks[:-1], tokens)
        return model.reroll(tokens, len(model.blocks) - 2).flatten(1, 2)

    return _Opened(enter)


# A subclass is served by its base; the order does not matter, the four are siblings.
_OPENERS: dict[type[nn.Module], Callable[[Any], _Opened]] = {
    VisionTransformer: _open_vit,
    Eva: _open_eva,
    Beit: _open_beit,
    Hiera: _open_hiera,
}


class _FixedRope(nn.Module):
    """A rotary table that is a constant."""

    feat_shape: tuple[int, int] = (0, 0)  # timm asks for the attribute, not for its value

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.detach().clone(), persistent=False)

    def get_embed(self) -> Tensor:
        return self.table  # type: ignore[return-value]


def _rope_rows(table: Tensor, prefix: int) -> Tensor:
    """Return a rotary table (N, 2d) or (heads, N, 2d) as (prefix + N, h, 2d); prefix rows rotate by nothing."""
    rows = table.unsqueeze(1) if table.ndim == 2 else table.transpose(0, 1)
    half = rows.shape[-1] // 2
    identity = torch.cat([rows.new_zeros(prefix, rows.shape[1], half), rows.new_ones(prefix, rows.shape[1], half)], -1)
    return torch.cat([identity, rows])


def _bake_bias(attn: Any) -> None:
    """Look the relative position bias of `attn` up once, not in every run."""
    if attn.window_size is None:
        return
    attn.register_buffer("baked_bias", attn._get_rel_pos_bias().detach().clone(), persistent=False)
    attn._get_rel_pos_bias = lambda: attn.baked_bias


def _run(blocks: nn.Module, tokens: Tensor) -> Tensor:
    for block in blocks:  # type: ignore[attr-defined]
        tokens = block(tokens)
    return tokens


def _real(norm: nn.Module | None) -> nn.Module | None:
    return None if isinstance(norm, nn.Identity) else norm


def _shape(model: Any) -> Shape:
    if isinstance(model, Hiera):
        _, (rows, columns) = model.reroll.schedule[len(model.blocks) - 1]
        return Shape(dim=model.num_features, grid=(rows, columns), prefix=0, has_cls=False)
    rows, columns = model.patch_embed.grid_size
    return Shape(
        dim=model.num_features,
        grid=(rows, columns),
        prefix=1 if isinstance(model, Beit) else model.num_prefix_tokens,
        has_cls=model.cls_token is not None,
    )
