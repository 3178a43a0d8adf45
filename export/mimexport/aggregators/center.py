"""Aggregators that favour patches near the image centre."""

from __future__ import annotations

import torch
from torch import Tensor

from mimexport.aggregators.base import Aggregator, Pooled, weighted_sum
from mimexport.backbone import Shape
from mimexport.features import Features
from mimexport.grid import closeness_to_center


class Center(Aggregator):
    """Mean of the central n×n patches, n being half the grid."""

    formula = "mean of the central n×n patches, n = half the grid"
    inside: Tensor
    weights: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        inside = torch.zeros(shape.grid)
        edges = [max(1, edge // 2) for edge in shape.grid]
        top, left = ((edge - inner) // 2 for edge, inner in zip(shape.grid, edges, strict=True))
        inside[top : top + edges[0], left : left + edges[1]] = 1
        self.register_buffer("inside", inside.flatten().nonzero().flatten(), persistent=False)
        self.register_buffer("weights", (inside / inside.sum()).flatten(), persistent=False)

    @property
    def reads_all(self) -> bool:
        """See base class."""
        return self.shape.kept is not None

    def forward(self, features: Features) -> Pooled:
        """See base class; after patches were dropped, central patches dominate the mean, or all count if none is left."""
        if features.kept is not None:
            return weighted_sum(features.patches, _shares_of_kept(features, self.weights))
        mean = features.mean_of(self.inside)
        return Pooled(mean, self.weights.expand(mean.shape[0], -1))


class CenterWeighted(Aggregator):
    """All patches, weighted by their closeness to the centre."""

    formula = "Σ w_i x_i, w_i ∝ 1 − distance of patch i to the centre / the largest such distance"
    weights: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        near = closeness_to_center(shape)
        self.register_buffer("weights", near / near.sum(), persistent=False)

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        if features.kept is not None:
            return weighted_sum(features.patches, _shares_of_kept(features, self.weights))
        return weighted_sum(features.patches, self.weights.expand(features.patches.shape[0], -1))


def _shares_of_kept(features: Features, weights: Tensor) -> Tensor:
    """Return the weights (B, N) of the kept patches, each row summing to one, from weights of the full grid."""
    left = features.of_patches(weights.clamp_min(1e-6)).expand(features.patches.shape[0], -1)
    return left / left.sum(-1, keepdim=True)
