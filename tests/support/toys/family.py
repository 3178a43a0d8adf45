"""Example of a backbone family outside timm: a mixer with a [cls] token, its loader and its parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mimexport import LoadedModel
from mimexport.blocks import open_block
from mimexport.families import BackboneParts, Family, Shape
from mimexport.loaded_model import model_sha256

SIZE, PATCH, DIM = 32, 8, 24
GRID = SIZE // PATCH


class MixerBlock(nn.Module):
    """A block that mixes tokens along both axes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.along, self.across = nn.LayerNorm(DIM), nn.Linear(GRID**2 + 1, GRID**2 + 1), nn.Linear(DIM, DIM)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.along(self.norm(tokens).transpose(1, 2)).transpose(1, 2)
        return tokens + self.across(self.norm(tokens)).tanh()


class Mixer(nn.Module):
    """The complete encoder: (B, 3, 32, 32) -> (B, 17, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.blocks = nn.ModuleList(MixerBlock() for _ in range(2))
        self.norm = nn.LayerNorm(DIM)


def open_mixer(model: Any) -> BackboneParts:
    def embed(images: Tensor) -> Tensor:
        patches = model.project(images).flatten(2).transpose(1, 2)
        return torch.cat([model.cls_token.expand(images.shape[0], -1, -1), patches], 1)

    return BackboneParts(embed, [open_block(block) for block in model.blocks])


FAMILY = Family(
    open_mixer, lambda model: Shape(dim=DIM, grid=(GRID, GRID), prefix=1, has_cls=True), lambda model: PATCH
)


def load_mixer() -> LoadedModel:
    torch.manual_seed(0)
    model = Mixer().eval()
    config = {"input_size": (3, SIZE, SIZE), "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}
    config |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return LoadedModel(model, "mixer", "mixer", "memory", "seed 0", model_sha256(model), "mit", config)
