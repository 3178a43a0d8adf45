"""timm's Beit; its relative position biases become constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mimexport.blocks import open_block
from mimexport.families import vit
from mimexport.families.base import BackboneParts, Family, Shape


def open_model(model: Any) -> BackboneParts:
    """Split a Beit into parts."""
    shared = None if model.rel_pos_bias is None else model.rel_pos_bias()

    def place(tokens: Tensor) -> Tensor:
        tokens = torch.cat((model.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        return tokens if model.pos_embed is None else tokens + model.pos_embed

    blocks = [open_block(block, bias=_position_bias(block.attn, shared)) for block in model.blocks]
    return BackboneParts(lambda images: place(model.patch_embed(images)), blocks, place=place)


def shape_of(model: Any) -> Shape:
    """Return the shape of its tokens: [cls] and the patches."""
    return Shape(dim=model.num_features, grid=tuple(model.patch_embed.grid_size), prefix=1, has_cls=True)


FAMILY = Family(open_model, shape_of, vit.unit_of)


def _position_bias(attn: Any, shared: Tensor | None) -> Tensor | None:
    """Return the relative position bias of one block as a constant (S, heads, S), or None."""
    own = None if attn.window_size is None else attn._get_rel_pos_bias()
    parts = [part for part in (shared, own) if part is not None]
    if not parts:
        return None
    # from ([1,] heads, S, S) to (S, heads, S), so that query rows can be indexed
    return torch.stack([part.squeeze(0) for part in parts]).sum(0).transpose(0, 1).clone()
