"""timm's VisionTransformer and its subclasses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mimexport.blocks import open_block
from mimexport.families.base import BackboneParts, Family, Shape


def open_model(model: Any) -> BackboneParts:
    """Split a VisionTransformer into parts."""

    def embed(images: Tensor) -> Tensor:
        tokens: Tensor = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        return tokens

    blocks = [open_block(block) for block in model.blocks]
    return BackboneParts(embed, blocks, place=model._pos_embed, norm_pre=model.norm_pre)


def shape_of(model: Any) -> Shape:
    """Return the shape of the model's tokens."""
    return Shape(
        dim=model.num_features,
        grid=tuple(model.patch_embed.grid_size),
        prefix=model.num_prefix_tokens,
        has_cls=model.cls_token is not None,
    )


def unit_of(model: Any) -> int:
    """Return the edge of a patch, px."""
    return int(model.patch_embed.patch_size[0])


FAMILY = Family(open_model, shape_of, unit_of)
