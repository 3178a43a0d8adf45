"""Aggregators that weight patches by the last block's attention from [cls]."""

from __future__ import annotations

from mimexport.aggregators.base import Aggregator, Pooled, weighted_sum
from mimexport.features import Features


class AttentionMean(Aggregator):
    """Patches weighted by the [cls] attention, averaged over heads."""

    formula = "Σ w_i x_i, w_i ∝ mean_h A^h[cls, i]"
    needs_cls = True

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        weights = features.cls_attention.mean(1)
        return weighted_sum(features.patches, weights / weights.sum(-1, keepdim=True))


class AttentionMinEntropy(Aggregator):
    """Patches weighted by the [cls] attention of one head: the head with the least entropy, chosen per image."""

    formula = "Σ w_i x_i, w = A^h[cls, ·] of the head with least entropy"
    needs_cls = True

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        heads = features.cls_attention
        entropy = -(heads * heads.clamp_min(1e-12).log()).sum(-1)
        chosen = entropy.argmin(1)[:, None, None].expand(-1, 1, heads.shape[-1])
        return weighted_sum(features.patches, heads.gather(1, chosen)[:, 0])
