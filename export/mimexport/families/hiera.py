"""timm's Hiera: it pools patches between stages and has no [cls]."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mimexport.blocks import OpenBlock, open_block
from mimexport.families.base import BackboneParts, Family, Shape
from mimruntime.errors import OptionError


def open_model(model: Any) -> BackboneParts:
    """Split a Hiera into parts.

    Raises:
        OptionError: the model pools in its last block.

    """
    blocks = [open_block(block) for block in model.blocks]
    if not isinstance(blocks[-1], OpenBlock):
        raise OptionError("this Hiera pools in its last block, which is not supported; choose another --model")
    if model.pos_embed_win is not None:
        # The window position table is resized with antialiasing, which no engine supports, so store the sum as a constant.
        zero = model.pos_embed_win.new_zeros(())
        model.pos_embed = nn.Parameter(model._pos_embed(zero), requires_grad=False)
        model.pos_embed_win = None

    def embed(images: Tensor) -> Tensor:
        tokens: Tensor = model.unroll(model._pos_embed(model.patch_embed(images)))
        return tokens

    def regroup(tokens: Tensor) -> Tensor:
        in_order: Tensor = model.reroll(tokens, len(blocks) - 2).flatten(1, 2)
        return in_order

    return BackboneParts(embed, blocks, regroup)


def shape_of(model: Any) -> Shape:
    """Return the shape of the tokens of the last stage."""
    _, (rows, columns) = model.reroll.schedule[len(model.blocks) - 1]
    return Shape(dim=model.num_features, grid=(rows, columns), prefix=0, has_cls=False)


def unit_of(model: Any) -> int:
    """Return the edge of a mask unit, px."""
    return int(model.patch_stride[0] * model.mask_unit_size[0])


FAMILY = Family(open_model, shape_of, unit_of)
