"""What every aggregator is: tokens in, one vector out, and the share every patch has in it."""

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
        weights: (B, N), the share of every patch, summing to one; None where patches have no share (max, gem, cls).

    """

    vector: Tensor
    weights: Tensor | None = None


class Aggregator(nn.Module, ABC):
    """Base of all aggregators. To add one: a subclass, and a line in `mimexport.aggregators.AGGREGATORS`.

    Those of the table are made with the backbone's shape. An instance of one's own, made without it, is given to `build`.
    Options are keyword-only arguments of `__init__`; `params` gives their resolved values for the manifest.

    Attributes:
        formula: one line, in the notation of docs/explanation/why-patches.md (x_i: patch tokens, N of them).
        token_norm: the default; measured, see docs/results/aggregators.md.
        needs_cls: whether [cls] is read.
        needs_head: whether its parameters are learned, so that a head is needed.
        has_weights: whether `Pooled.weights` is given, so that `--with-selection` works.
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
        """What it must know of its backbone.

        Raises:
            OptionError: none is known yet.

        """
        if self._shape is None:
            raise OptionError(f"{type(self).__name__} is not fitted to a backbone yet")
        return self._shape

    def fit_to(self, shape: Shape) -> None:
        """Take the backbone's shape, where it was made without; `build` calls it for an aggregator of one's own.

        Raises:
            OptionError: it was made for another shape.

        """
        if self._shape is not None and self._shape != shape:
            raise OptionError(f"{type(self).__name__} was made for {self._shape}, the backbone has {shape}")
        self._shape = shape

    @property
    def params(self) -> dict[str, str | int | float | bool]:
        """Options as resolved for this backbone."""
        return {}

    @property
    def width(self) -> int:
        """Width D' of the vector."""
        return self.out_dims * self.shape.dim

    @property
    def reads_all(self) -> bool:
        """Whether every patch token that leaves the last block is read, so that the block must run whole."""
        return True

    @abstractmethod
    def forward(self, features: Features) -> Pooled:
        """Aggregate one batch."""


@runtime_checkable
class Rescalable(Protocol):
    """An aggregator whose parameters, learned on tokens x / σ, can be turned into those for x."""

    def rescale(self, spread: Tensor) -> None:
        """Turn parameters learned on tokens x / σ into those for x; σ is (D,)."""


@runtime_checkable
class Preparable(Protocol):
    """An aggregator that takes something from the tokens before it is trained, fixed from then on."""

    def prepare(self, spread: Tensor) -> None:
        """Take what is fixed before training from the tokens' spread σ (D,)."""


@runtime_checkable
class Scorable(Protocol):
    """An aggregator that can take a linear scorer of patches, learned without labels."""

    def load_scorer(self, w: Tensor) -> None:
        """Take a linear scorer w (D,) of raw patch tokens."""


def weighted_sum(tokens: Tensor, weights: Tensor) -> Pooled:
    """Return Σ w_i x_i of tokens (B, N, D) and weights (B, N)."""
    return Pooled((tokens * weights.unsqueeze(-1)).sum(1), weights)


def project_slices(pooled: Tensor, weight: Tensor) -> Tensor:
    """Return (W_1 p_1, …, W_Q p_Q) side by side, (B, Q·E): every vector times the slice of the projection that is its own.

    Σ a_i (W x_i) = W Σ a_i x_i: what is pooled is projected once an image, tokens would be N times.

    Args:
        pooled: p, (B, Q, D).
        weight: W_1 … W_Q one below the other, (Q·E, D).
    """
    slices = weight.unflatten(0, (pooled.shape[1], -1)).transpose(1, 2)
    return (pooled.transpose(0, 1) @ slices).transpose(0, 1).flatten(1)
