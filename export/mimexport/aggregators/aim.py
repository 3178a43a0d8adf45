"""AIM-style attention pooling: one learned query per head, over standardised patches."""

from __future__ import annotations

from torch import Tensor, nn, ones, randn

from mimexport.aggregators.base import Aggregator, Pooled, project_slices
from mimexport.backbone import Shape
from mimexport.features import Features
from mimruntime.errors import OptionError

_HEAD_DIM = 64


class AimPooling(Aggregator):
    """The attentive probe of AIM (El-Nouby et al., arXiv 2401.08541).

    On a frozen backbone, AIM's batch norm without affine is a fixed standardisation. Only the standard deviation is
    applied here. The mean would add one constant to all scores, which the softmax cancels, and one constant to all values,
    which the classifier's batch norm cancels.

    Args:
        shape: of the backbone.
        heads: number of heads; must divide D. None selects heads of about 64 dimensions, as in vision transformers.
    """

    formula = "concat_h Σ_i a_hi (W_v x̂_i)_h, a_h = softmax_i(q_h·(W_k x̂_i)_h / √d), x̂ = x / σ"
    needs_head = True
    std: Tensor

    def __init__(self, shape: Shape, *, heads: int | None = None) -> None:
        super().__init__(shape)
        heads = _heads_of(shape.dim) if heads is None else heads
        if heads < 1 or shape.dim % heads:
            raise OptionError(f"aim: heads = {heads} must divide the token width {shape.dim}")
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
        """Return vectors (B, D) and attention (B, heads, N) for patches (B, N, D)."""
        # q·(W_k x̂) = (W_kᵀ q / σ)·x: one vector per head instead of one product per patch.
        keys = self.key.weight.unflatten(0, (self.heads, -1))
        queries = (self.query.unsqueeze(1) @ keys).squeeze(1) / self.std / self.query.shape[1] ** 0.5
        attention = (patches @ queries.T).softmax(1).transpose(1, 2)
        return project_slices(attention @ patches / self.std, self.value.weight), attention

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        vector, attention = self.pool(features.patches)
        return Pooled(vector, attention.mean(1))


def _heads_of(dim: int) -> int:
    """Return the largest number of heads that divides `dim` with at least 64 dimensions per head (1 for `dim` < 64)."""
    return next(heads for heads in range(max(1, dim // _HEAD_DIM), 0, -1) if dim % heads == 0)
