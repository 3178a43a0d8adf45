"""timm's patch embedding as a linear layer; that equals its convolution because patches do not overlap."""

from __future__ import annotations

from typing import Any

from timm.layers import PatchEmbed
from torch import Tensor, nn


class OpenPatchEmbed(nn.Module):
    """Patches (B, N, p · p · 3) -> tokens (B, N, D); equal to timm's `PatchEmbed` of the whole image."""

    def __init__(self, embed: PatchEmbed) -> None:
        super().__init__()
        conv: Any = embed.proj
        self.grid_size: tuple[int, int] = embed.grid_size
        self.proj = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None, device="meta")
        self.proj.weight = nn.Parameter(conv.weight.permute(0, 2, 3, 1).flatten(1), requires_grad=False)
        self.proj.bias = conv.bias
        self.norm = embed.norm

    @staticmethod
    def fits(embed: Any) -> bool:
        """Return whether a patch embedding is timm's `PatchEmbed` with a fixed image size and flattened tokens."""
        return type(embed) is PatchEmbed and embed.flatten and not embed.dynamic_img_pad

    def patchify(self, images: Tensor) -> Tensor:
        """Return the patches of images (B, H, W, 3), row-major."""
        rows, columns = self.grid_size
        patches = images.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).transpose(2, 3)
        return patches.flatten(3).flatten(1, 2)

    def forward(self, patches: Tensor) -> Tensor:
        """Return the tokens."""
        tokens: Tensor = self.norm(self.proj(patches))
        return tokens
