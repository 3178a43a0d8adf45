"""Base class and protocols of aggregators: tokens in; one vector and the weight of each patch out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from mimexport.backbone import Shape
from mimexport.features import Features
from mimruntime.errors import OptionError
from mimruntime.manifest import TokenNorm


class Pooled(NamedTuple):
    """The result of an aggregation.

    Attributes:
        vector: (B, D').
        weights: (B, N), the weight of each patch in the vector; each row sums to one. None if the aggregator does not weight
            patches (cls, cls+mean, max, gem).

    """

    vector: Tensor
    weights: Tensor | None = None


class Aggregator(nn.Module, ABC):
    """Base class of all aggregators. To add one, write a subclass and a line in `mimexport.aggregators.AGGREGATORS`.

    Aggregators in the table are created with the backbone's shape. You can also create an instance of your own subclass
    without a shape and pass it to `build`. Options are keyword-only arguments of `__init__`; `params` returns their
    resolved values for the manifest.

    Attributes:
        formula: one line, in the notation of docs/explanation/why-patches.md (x_i: patch tokens, N of them).
        token_norm: the default token norm, chosen from measurements (docs/results/aggregators.md).
        needs_cls: whether it reads [cls].
        needs_head: whether it has learned parameters, which come from a head.
        has_weights: whether it returns `Pooled.weights`; `--with-selection` requires it.
        out_dims: width of the vector in units of D.

    """

    formula: ClassVar[str]
    token_norm: ClassVar[TokenNorm] = "raw"
    needs_cls: ClassVar[bool] = False
    needs_head: ClassVar[bool] = False
    has_weights: ClassVar[bool] = True
    out_dims: ClassVar[int] = 1

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self._shape = shape

    @property
    def shape(self) -> Shape:
        """Shape of the backbone's tokens.

        Raises:
            OptionError: the shape is not set yet.

        """
        if self._shape is None:
            raise OptionError(f"{type(self).__name__} is not fitted to a backbone yet")
        return self._shape

    def fit_to(self, shape: Shape) -> None:
        """Set the backbone's shape; `build` calls it for instances of your own subclass.

        Raises:
            OptionError: the aggregator already has a different shape.

        """
        if self._shape is not None and self._shape != shape:
            raise OptionError(f"{type(self).__name__} was made for {self._shape}, the backbone has {shape}")
        self._shape = shape

    @property
    def params(self) -> dict[str, str | int | float | bool]:
        """Option values, resolved for this backbone."""
        return {}

    @property
    def width(self) -> int:
        """Width D' of the vector."""
        return self.out_dims * self.shape.dim

    @property
    def reads_all(self) -> bool:
        """Whether it reads every patch token of the last block's output; if so, the block runs on all tokens."""
        return True

    @abstractmethod
    def forward(self, features: Features) -> Pooled:
        """Aggregate one batch."""


@runtime_checkable
class Rescalable(Protocol):
    """An aggregator whose parameters, learned on tokens x / σ, can be converted to parameters for x."""

    def rescale(self, spread: Tensor) -> None:
        """Convert parameters learned on tokens x / σ to parameters for x; σ has shape (D,)."""


@runtime_checkable
class Preparable(Protocol):
    """An aggregator that sets fixed values from token statistics before training."""

    def prepare(self, spread: Tensor) -> None:
        """Set the fixed values from the tokens' standard deviation σ (D,)."""


@runtime_checkable
class Scorable(Protocol):
    """An aggregator that can load a linear patch scorer learned without labels."""

    def load_scorer(self, w: Tensor) -> None:
        """Load the weights w (D,) of a linear scorer of raw patch tokens."""


def weighted_sum(tokens: Tensor, weights: Tensor) -> Pooled:
    """Return Σ w_i x_i for tokens (B, N, D) and weights (B, N)."""
    return Pooled((tokens * weights.unsqueeze(-1)).sum(1), weights)


def project_slices(pooled: Tensor, weight: Tensor) -> Tensor:
    """Return W_1 p_1, …, W_Q p_Q concatenated, (B, Q·E): each pooled vector times its own slice of the projection.

    Σ a_i (W x_i) = W Σ a_i x_i, so projecting pooled vectors takes one product per image instead of N.

    Args:
        pooled: p, (B, Q, D).
        weight: W_1 … W_Q stacked by rows, (Q·E, D).
    """
    slices = weight.unflatten(0, (pooled.shape[1], -1)).transpose(1, 2)
    return (pooled.transpose(0, 1) @ slices).transpose(0, 1).flatten(1)
