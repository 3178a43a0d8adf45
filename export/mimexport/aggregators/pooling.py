"""Aggregators that treat all patches alike: cls, mean, cls+mean, max, gem."""

from __future__ import annotations

import torch

from mimexport.aggregators.base import Aggregator, Pooled
from mimexport.features import Features


class Cls(Aggregator):
    """The [cls] token: the baseline of every comparison. Masked image modelling does not train it as a summary."""

    formula = "x_cls"
    token_norm = "final"
    needs_cls = True
    has_weights = False

    @property
    def reads_all(self) -> bool:
        """See base class."""
        return False

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        return Pooled(features.cls)


class Mean(Aggregator):
    """Mean of all patch tokens, also called global average pooling (GAP)."""

    formula = "1/N Σ x_i"

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        mean = features.mean_of(None)
        patches = self.shape.patches
        return Pooled(mean, mean.new_full((mean.shape[0], patches), 1 / patches))


class ClsMean(Aggregator):
    """[cls] and the mean of the patches, concatenated; each is scaled to unit length so that both count equally."""

    formula = "[x_cls/‖x_cls‖, m/‖m‖] with m = 1/N Σ x_i"
    token_norm = "final"
    needs_cls = True
    has_weights = False
    out_dims = 2

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        cls, patches = features.cls_and_patches
        parts = (cls, patches.mean(1))
        return Pooled(torch.cat([part / part.norm(dim=-1, keepdim=True).clamp_min(1e-6) for part in parts], -1))


class Max(Aggregator):
    """Maximum over the patches, per channel."""

    formula = "max_i x_i"
    token_norm = "final"
    has_weights = False

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        return Pooled(features.patches.amax(1))


class GeM(Aggregator):
    """Generalised mean with p = 3, between mean (p = 1) and max (p = ∞); Radenović et al., arXiv 1711.02512."""

    formula = "(1/N Σ max(x_i, 1e-6)^3)^(1/3)"
    token_norm = "final"
    has_weights = False

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        x = features.patches.clamp_min(1e-6)
        return Pooled((x * x * x).mean(1).pow(1 / 3))
