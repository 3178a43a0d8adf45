"""A timm vision transformer, its blocks opened, so that an aggregator reads of the last one only what it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mimexport.blocks import OpenBlock
from mimexport.families import Shape, family_of, real_module
from mimexport.patches import OpenPatchEmbed

__all__ = ["Backbone", "Shape"]


class Backbone(nn.Module):
    """The frozen model: images (B, 3, H, W) -> tokens entering the last block (B, S, D), and that block.

    Args:
        model: of a class in `mimexport.families.FAMILIES`, with its weights loaded, `num_classes=0`; it is taken apart
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
        family = family_of(model)
        timm_model: Any = model
        # Explicit q·scale @ kᵀ, softmax, @ v: exporters and TensorRT do not agree on how the fused form scales.
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

    @property
    def reduced(self) -> bool:
        """Whether the last block is computed for the rows that are read alone."""
        return isinstance(self.last_block, OpenBlock)

    def patchify(self, images: Tensor) -> Tensor:
        """Return images (B, H, W, 3) in the form `encode` reads: patches (B, N, p · p · 3), (B, 3, H, W) if they overlap."""
        embed = getattr(self.model, "patch_embed", None)
        return embed.patchify(images) if isinstance(embed, OpenPatchEmbed) else images.permute(0, 3, 1, 2)

    def per_channel(self, values: Tensor) -> Tensor:
        """Return one number a channel (3,) in the shape that broadcasts to what `patchify` gives."""
        embed = getattr(self.model, "patch_embed", None)
        return values.repeat(embed.proj.in_features // 3) if isinstance(embed, OpenPatchEmbed) else values.view(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens (B, S, D) that enter the last block for normalised images (B, 3, H, W)."""
        return self.encode(self.patchify(images.permute(0, 2, 3, 1)))

    def encode(self, patches: Tensor) -> Tensor:
        """Return the tokens (B, S, D) that enter the last block, prefix first, patches in row-major order."""
        tokens = self._embed(patches)
        for block in self.blocks:
            tokens = block(tokens)
        return self._regroup(tokens)
