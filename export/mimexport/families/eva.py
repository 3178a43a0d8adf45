"""timm's Eva; its rotary position tables become constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mimexport.blocks import open_block
from mimexport.families import vit
from mimexport.families.base import BackboneParts, Family


def open_model(model: Any) -> BackboneParts:
    """Split an Eva into parts."""
    depth = len(model.blocks)
    ropes: list[Tensor | None] = [None] * depth
    if model.rope is not None:
        # The angles depend only on the grid. If they were computed in the graph, it would contain If, Tile and ScatterND.
        known = hasattr(model.rope, "feat_shape")
        table = model.rope.get_embed() if known else model.rope.get_embed(shape=model.patch_embed.grid_size)
        tables = table if getattr(model, "rope_mixed", False) else [table] * depth
        ropes = [_rope_rows(one.detach(), model.num_prefix_tokens) for one in tables]
        model.rope = None

    def embed(images: Tensor) -> Tensor:
        tokens, _ = model._pos_embed(model.patch_embed(images))
        normed: Tensor = model.norm_pre(tokens)
        return normed

    blocks = [open_block(block, rope=rope) for block, rope in zip(model.blocks, ropes, strict=True)]
    return BackboneParts(embed, blocks, place=lambda tokens: model._pos_embed(tokens)[0], norm_pre=model.norm_pre)


FAMILY = Family(open_model, vit.shape_of, vit.unit_of)


def _rope_rows(table: Tensor, prefix: int) -> Tensor:
    """Return a rotary table (N, 2d) or (heads, N, 2d) as (prefix + N, h, 2d); prefix rows are the identity."""
    rows = table.unsqueeze(1) if table.ndim == 2 else table.transpose(0, 1)
    half = rows.shape[-1] // 2
    identity = torch.cat([rows.new_zeros(prefix, rows.shape[1], half), rows.new_ones(prefix, rows.shape[1], half)], -1)
    return torch.cat([identity, rows])
