"""SimPool: attention pooling with one query, computed from the mean of the patches."""

from __future__ import annotations

from torch import Tensor, nn

from mimexport.aggregators.base import Aggregator, Pooled, weighted_sum
from mimexport.backbone import Shape
from mimexport.features import Features


class SimPool(Aggregator):
    """SimPool (Psomas et al., arXiv 2309.06891), with γ = 1.

    The paper's exponent γ needs the smallest value of the whole batch, so a vector would depend on the other images of
    its batch. With γ = 1 the pooling is a weighted mean of the normalised patches.
    """

    formula = "Σ a_i LN(x_i), a = softmax_i((W_q m)·(W_k LN(x_i)) / √D), m = 1/N Σ x_i"
    needs_head = True

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.norm = nn.LayerNorm(shape.dim, eps=1e-6)
        self.query = nn.Linear(shape.dim, shape.dim, bias=False)
        self.key = nn.Linear(shape.dim, shape.dim, bias=False)

    def weigh(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights (B, N) and the normalised patches (B, N, D)."""
        normed = self.norm(patches)
        # q·(W_k x) = (W_kᵀ q)·x: one product per image instead of one per patch. With this order of factors, and a sum
        # instead of a matrix product with x, TensorRT-RTX builds the same plan every time.
        query = (self.key.weight.T @ (self.query.weight @ patches.mean(1).T)).T / self.shape.dim**0.5
        return (normed * query.unsqueeze(1)).sum(-1).softmax(-1), normed

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        weights, normed = self.weigh(features.patches)
        return weighted_sum(normed, weights)
