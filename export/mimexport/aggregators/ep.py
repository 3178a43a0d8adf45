"""EP: several learned queries, each pooling its own slice of the projected patches."""

from __future__ import annotations

from torch import Tensor, nn, no_grad, randn

from mimexport.aggregators.base import Aggregator, Pooled, project_slices
from mimexport.backbone import Shape
from mimexport.features import Features
from mimruntime.errors import OptionError


class EfficientProbing(Aggregator):
    """Efficient probing (Psomas et al., 'Attention, Please!', arXiv 2506.10178).

    Args:
        shape: of the backbone.
        queries: number Q of learned queries; must divide the vector's width.
        d_out: divisor of the width: the vector has D / d_out dimensions.
    """

    formula = "concat_j Σ_i a_ji (W x_i)_j, a_j = softmax_i(x_i·u_j / √D), Q queries u_j"
    needs_head = True

    def __init__(self, shape: Shape, *, queries: int = 16, d_out: int = 1) -> None:
        super().__init__(shape)
        if d_out < 1 or queries < 1 or shape.dim % d_out or (shape.dim // d_out) % queries:
            raise OptionError(
                f"ep: queries = {queries}, d_out = {d_out}, token width {shape.dim};"
                " d_out must divide the width, and queries must divide width / d_out"
            )
        self.num_queries, self.d_out = queries, d_out
        self.queries = nn.Parameter(0.02 * randn(queries, shape.dim))
        self.value = nn.Linear(shape.dim, shape.dim // d_out, bias=False)

    @property
    def params(self) -> dict[str, str | int | float | bool]:
        """See base class."""
        return {"queries": self.num_queries, "d_out": self.d_out}

    @property
    def width(self) -> int:
        """See base class."""
        return self.shape.dim // self.d_out

    def rescale(self, spread: Tensor) -> None:
        """See `mimexport.aggregators.base.Rescalable`."""
        with no_grad():
            self.queries.div_(spread)
            self.value.weight.div_(spread)

    def pool(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (B, D / d_out) and attention (B, Q, N) for patches (B, N, D)."""
        # With this order of product, softmax and transpose, TensorRT-RTX builds the same plan every time.
        scores = patches @ self.queries.T / self.shape.dim**0.5
        attention = scores.softmax(1).transpose(1, 2)
        return project_slices(attention @ patches, self.value.weight), attention

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        vector, attention = self.pool(features.patches)
        return Pooled(vector, attention.mean(1))
