"""A timm vision transformer whose last block can be computed for chosen tokens only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mimexport.blocks import ALL, OpenBlock
from mimexport.early_selection import EarlySelection, Encoded
from mimexport.families import BackboneParts, Shape, family_of, real_module
from mimexport.patches import OpenPatchEmbed
from mimruntime.errors import OptionError
from mimruntime.manifest import Keep

__all__ = ["Backbone", "Encoded", "Shape"]


class Backbone(nn.Module):
    """The frozen model: images (B, 3, H, W) -> tokens that enter the last block (B, S, D), and the last block itself.

    Args:
        model: of a class in `mimexport.families.FAMILIES`, with its weights loaded and `num_classes=0`. It is modified: its
            blocks move here and position tables become constants, so it can no longer run by itself.
        keep: which patches stay in the encoder; None keeps all.

    Attributes:
        shape: token width, grid, prefix tokens and number of kept patches.
        keep: which patches stay in the encoder, or None.
        blocks: all blocks but the last.
        last_block: the last block, callable for chosen rows.
        norm: the final norm, applied to each token; None if the model has its norm after the pool.
        pool_norm: the norm after the pool, or None.

    """

    def __init__(self, model: nn.Module, keep: Keep | None = None) -> None:
        super().__init__()
        family = family_of(model)
        timm_model: Any = model
        # Use explicit q·scale @ kᵀ, softmax, @ v: exporters and TensorRT scale the fused form differently.
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", False)  # noqa: B010 - nn.Module types attributes as tensors
        model.eval().requires_grad_(False)
        self.shape = family.shape(timm_model)
        if OpenPatchEmbed.fits(getattr(model, "patch_embed", None)):
            timm_model.patch_embed = OpenPatchEmbed(timm_model.patch_embed)
        with torch.no_grad():
            opened = family.open_model(timm_model)
        timm_model.blocks = nn.ModuleList()
        self.model = model
        self.blocks = nn.ModuleList(opened.blocks[:-1])
        self.last_block = opened.blocks[-1]
        self._embed, self._regroup = opened.embed, opened.regroup
        head = getattr(model, "head", None)
        self.norm = real_module(getattr(model, "norm", None))
        self.pool_norm = real_module(getattr(model, "fc_norm", None)) or real_module(getattr(head, "norm", None))
        self.keep = keep
        if keep is not None:
            self._select_early(keep, opened)

    def _select_early(self, keep: Keep, opened: BackboneParts) -> None:
        """Set up patch selection and reduce the position tables to the kept patches where these are fixed."""
        embed: Any = self.model.patch_embed
        if opened.place is None:
            raise OptionError(
                f"--keep: {type(self.model).__name__} pools neighbouring patches between its stages, so none can be dropped;"
                " leave --keep out, or take a smaller --image-size"
            )
        if not isinstance(embed, OpenPatchEmbed):
            raise OptionError(f"--keep: the patch embedding {type(embed).__name__} is not supported; leave --keep out")
        with torch.no_grad():
            positions = opened.place(torch.zeros(1, self.shape.patches, self.shape.dim))[0]
        self.selection = EarlySelection(keep, self.shape, positions)
        self.norm_pre = opened.norm_pre
        self.shape = replace(self.shape, kept=keep.stages[-1].patches)
        places: Tensor | None = None
        for number, block in enumerate(opened.blocks if self.selection.fixed else []):
            rows = self.selection.fixed_rows(number)
            places = places if rows is None else rows
            if places is not None:
                block.keep_positions(places)

    @property
    def reduced(self) -> bool:
        """Whether the last block can be computed for chosen rows only."""
        return isinstance(self.last_block, OpenBlock)

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return next(self.parameters()).device

    def patchify(self, images: Tensor) -> Tensor:
        """Return `encode`'s input for images (B, H, W, 3): patches (B, N, p · p · 3), or (B, 3, H, W) if they overlap."""
        embed = getattr(self.model, "patch_embed", None)
        return embed.patchify(images) if isinstance(embed, OpenPatchEmbed) else images.permute(0, 3, 1, 2)

    def per_channel(self, values: Tensor) -> Tensor:
        """Return values (3,), one per channel, in a shape that broadcasts to the output of `patchify`."""
        embed = getattr(self.model, "patch_embed", None)
        return values.repeat(embed.proj.in_features // 3) if isinstance(embed, OpenPatchEmbed) else values.view(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens (B, S, D) that enter the last block for normalised images (B, 3, H, W)."""
        return self.encode(self.patchify(images.permute(0, 2, 3, 1))).tokens

    def encode(self, patches: Tensor, dtype: torch.dtype | None = None) -> Encoded:
        """Return the input of the last block for normalised patches, computed in `dtype` (None: the patches' dtype)."""
        if self.keep is not None:
            return self._encode_kept(patches, dtype or patches.dtype)
        tokens = self._embed(patches.to(dtype or patches.dtype))
        for block in self.blocks:
            tokens = block(tokens)
        return Encoded(self._regroup(tokens))

    def places_of(self, kept: Tensor | None) -> Tensor | None:
        """Return the position-table rows (B, S) of kept patches; None if the tables are reduced already or not needed."""
        if kept is None or self.selection.fixed or not self._positional:
            return None
        return self.selection.rows_of(kept)

    @property
    def _positional(self) -> bool:
        return any(isinstance(block, OpenBlock) and block.positional for block in (*self.blocks, self.last_block))

    def _encode_kept(self, patches: Tensor, dtype: torch.dtype) -> Encoded:
        """Return the input of the last block, dropping patches on the way."""
        select, embed = self.selection, self.model.patch_embed
        scores = select.score_pixels(patches)
        patches, kept = select.before_embedding(patches, scores)
        embedded = embed(patches.to(dtype))  # type: ignore[operator]
        entering = Encoded(self.norm_pre(select.place(embedded, kept)), kept)
        for number, block in enumerate(self.blocks):
            tokens, kept = select.drop_before(number, entering, scores)
            entering = Encoded(block(tokens, ALL, self.places_of(kept)), kept)
        return select.drop_before(len(self.blocks), entering, scores)
