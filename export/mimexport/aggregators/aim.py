"""AIM-style attention pooling: one learned query in every head, over standardised patches."""

from __future__ import annotations

from torch import Tensor, nn, ones, randn

from mimexport.aggregators.base import Aggregator, Pooled, project_slices
from mimexport.backbone import Shape
from mimexport.features import Features
from mimruntime.errors import OptionError

_HEAD_DIM = 64


class AimPooling(Aggregator):
    """The attentive probe of AIM (El-Nouby et al., arXiv 2401.08541).

    Its batch norm without affine is, on a frozen backbone, a fixed standardisation. The mean is left out: it shifts every
    score alike and every value by a constant, which the softmax and the classifier's own batch norm take out again.

    Args:
        shape: of the backbone.
        heads: divides D; None takes heads of about 64 dimensions, as vision transformers have.
    """

    formula = "concat_h Σ_i a_hi (W_v x̂_i)_h, a_h = softmax_i(q_h·(W_k x̂_i)_h / √d), x̂ = x / σ"
    needs_head = True
    std: Tensor

    def __init__(self, shape: Shape, *, heads: int | None = None) -> None:
        super().__init__(shape)
        heads = _heads_of(shape.dim) if heads is None else heads
        if heads < 1 or shape.dim % heads:
            raise OptionError(f"aim: {heads} heads do not divide tokens {shape.dim} wide")
        self.heads = heads
        self.register_buffer("std", ones(shape.dim))
        self.query = nn.Parameter(0.02 * randn(heads, shape.dim // heads))
        self.key = nn.Linear(shape.dim, shape.dim, bias=False)
        self.value = nn.Linear(shape.dim, shape.dim, bias=False)

    @property
    def params(self) -> dict[str, str | int | float | bool]:
        """See base class."""
        return {"heads": self.heads}

    def prepare(self, spread: Tensor) -> None:
        """See `mimexport.aggregators.base.Preparable`."""
        self.std.copy_(spread)

    def pool(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (B, D) and attention (B, heads, N) of patches (B, N, D)."""
        # q·(W_k x̂) = (W_kᵀ q / σ)·x: one vector a head, instead of a product for every patch.
        keys = self.key.weight.unflatten(0, (self.heads, -1))
        queries = (self.query.unsqueeze(1) @ keys).squeeze(1) / self.std / self.query.shape[1] ** 0.5
        attention = (patches @ queries.T).softmax(1).transpose(1, 2)
        return project_slices(attention @ patches / self.std, self.value.weight), attention

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        vector, attention = self.pool(features.patches)
        return Pooled(vector, attention.mean(1))


def _heads_of(dim: int) -> int:
    """Return the most heads of at least 64 dimensions that divide `dim`."""
    return next(heads for heads in range(max(1, dim // _HEAD_DIM), 0, -1) if dim % heads == 0)
