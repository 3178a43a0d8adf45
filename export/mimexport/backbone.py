"""A timm vision transformer, its blocks opened, so that an aggregator reads of the last one only what it needs."""

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

from mimexport.blocks import ClosedBlock, OpenBlock, open_block
from mimexport.patches import OpenPatchEmbed
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
    """A timm model taken apart.

    Attributes:
        embed: images to the tokens that enter the first block.
        blocks: all of them.
        regroup: what happens to the tokens before the last block.
    """

    embed: Callable[[Tensor], Tensor]
    blocks: list[OpenBlock | ClosedBlock]
    regroup: Callable[[Tensor], Tensor] = lambda tokens: tokens


class Backbone(nn.Module):
    """The frozen model: images (B, 3, H, W) -> tokens entering the last block (B, S, D), and that block.

    Args:
        model: a timm VisionTransformer, Eva, Beit or Hiera with its weights loaded, `num_classes=0`; it is taken apart
            (its blocks move here, position tables are baked) and cannot be run by itself any more.

    Attributes:
        shape: token width, grid and prefix.
        blocks: all but the last.
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
        model.eval().requires_grad_(False)
        self.shape = _shape(timm_model)
        if OpenPatchEmbed.fits(timm_model.patch_embed):
            timm_model.patch_embed = OpenPatchEmbed(timm_model.patch_embed)
        with torch.no_grad():
            opened = opener(timm_model)
        timm_model.blocks = nn.ModuleList()
        self.model = model
        self.blocks = nn.ModuleList(opened.blocks[:-1])
        self.last_block = opened.blocks[-1]
        self._embed, self._regroup = opened.embed, opened.regroup
        head = getattr(model, "head", None)
        self.norm = _real(getattr(model, "norm", None))
        self.pool_norm = _real(getattr(model, "fc_norm", None)) or _real(getattr(head, "norm", None))

    @property
    def reduced(self) -> bool:
        """Whether the last block is computed for the rows that are read alone."""
        return isinstance(self.last_block, OpenBlock)

    def cut(self, images: Tensor) -> Tensor:
        """Return images (B, H, W, 3) in the form `enter` reads: patches (B, N, p · p · 3), (B, 3, H, W) if they overlap."""
        embed = self.model.patch_embed
        return embed.cut(images) if isinstance(embed, OpenPatchEmbed) else images.permute(0, 3, 1, 2)

    def per_channel(self, values: Tensor) -> Tensor:
        """Return one number a channel (3,) in the shape that broadcasts to what `cut` gives."""
        embed = self.model.patch_embed
        return values.repeat(embed.proj.in_features // 3) if isinstance(embed, OpenPatchEmbed) else values.view(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens (B, S, D) that enter the last block for normalised images (B, 3, H, W)."""
        return self.enter(self.cut(images.permute(0, 2, 3, 1)))

    def enter(self, patches: Tensor) -> Tensor:
        """Return the tokens (B, S, D) that enter the last block, prefix first, patches in row-major order."""
        tokens = self._embed(patches)
        for block in self.blocks:
            tokens = block(tokens)
        return self._regroup(tokens)


def _open_vit(model: Any) -> _Opened:
    def embed(images: Tensor) -> Tensor:
        tokens: Tensor = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        return tokens

    return _Opened(embed, [open_block(block) for block in model.blocks])


def _open_eva(model: Any) -> _Opened:
    depth = len(model.blocks)
    ropes: list[Tensor | None] = [None] * depth
    if model.rope is not None:
        # The angles are constants of the grid; computed in the graph they become If, Tile and ScatterND.
        known = hasattr(model.rope, "feat_shape")
        table = model.rope.get_embed() if known else model.rope.get_embed(shape=model.patch_embed.grid_size)
        tables = table if getattr(model, "rope_mixed", False) else [table] * depth
        ropes = [_rope_rows(one.detach(), model.num_prefix_tokens) for one in tables]
        model.rope = None

    def embed(images: Tensor) -> Tensor:
        tokens, _ = model._pos_embed(model.patch_embed(images))
        normed: Tensor = model.norm_pre(tokens)
        return normed

    return _Opened(embed, [open_block(block, rope=rope) for block, rope in zip(model.blocks, ropes, strict=True)])


def _open_beit(model: Any) -> _Opened:
    shared = None if model.rel_pos_bias is None else model.rel_pos_bias()

    def embed(images: Tensor) -> Tensor:
        tokens = model.patch_embed(images)
        tokens = torch.cat((model.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        return tokens if model.pos_embed is None else tokens + model.pos_embed

    return _Opened(embed, [open_block(block, bias=_position_bias(block.attn, shared)) for block in model.blocks])


def _open_hiera(model: Any) -> _Opened:
    blocks = [open_block(block) for block in model.blocks]
    if not isinstance(blocks[-1], OpenBlock):
        raise OptionError("this Hiera pools in its last block; its patch tokens cannot be scored where they enter it")
    if model.pos_embed_win is not None:
        # The window position table is resized with antialiasing, which no engine does: bake the sum.
        zero = model.pos_embed_win.new_zeros(())
        model.pos_embed = nn.Parameter(model._pos_embed(zero), requires_grad=False)
        model.pos_embed_win = None

    def embed(images: Tensor) -> Tensor:
        tokens: Tensor = model.unroll(model._pos_embed(model.patch_embed(images)))
        return tokens

    def regroup(tokens: Tensor) -> Tensor:
        in_order: Tensor = model.reroll(tokens, len(blocks) - 2).flatten(1, 2)
        return in_order

    return _Opened(embed, blocks, regroup)


# A subclass is served by its base; the order does not matter, the four are siblings.
_OPENERS: dict[type[nn.Module], Callable[[Any], _Opened]] = {
    VisionTransformer: _open_vit,
    Eva: _open_eva,
    Beit: _open_beit,
    Hiera: _open_hiera,
}


def _rope_rows(table: Tensor, prefix: int) -> Tensor:
    """Return a rotary table (N, 2d) or (heads, N, 2d) as (prefix + N, h, 2d); prefix rows rotate by nothing."""
    rows = table.unsqueeze(1) if table.ndim == 2 else table.transpose(0, 1)
    half = rows.shape[-1] // 2
    identity = torch.cat([rows.new_zeros(prefix, rows.shape[1], half), rows.new_ones(prefix, rows.shape[1], half)], -1)
    return torch.cat([identity, rows])


def _position_bias(attn: Any, shared: Tensor | None) -> Tensor | None:
    """Return BEiT's relative position bias of one block, looked up once and not in every run, (S, heads, S)."""
    own = None if attn.window_size is None else attn._get_rel_pos_bias()
    parts = [part for part in (shared, own) if part is not None]
    if not parts:
        return None
    # ([1,] heads, S, S): the rows that are asked for come first
    return torch.stack([part.squeeze(0) for part in parts]).sum(0).transpose(0, 1).clone()


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
