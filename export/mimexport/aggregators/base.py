"""What every aggregator is: tokens in, one vector out, and the share every patch has in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from mimexport.backbone import Shape
from mimexport.features import Features
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

    Options are keyword-only arguments of `__init__`; `params` gives their resolved values for the manifest.

    Attributes:
        formula: one line, in the notation of the README (x_i: patch tokens, N of them).
        token_norm: the default; measured on `mae-tiny`, see the README.
        needs_cls: whether [cls] is read.
        has_weights: whether `Pooled.weights` is given, so that `--with-selection` works.
        out_dims: width of the vector in units of D.

    """

    formula: ClassVar[str]
    token_norm: ClassVar[TokenNorm] = "raw"
    needs_cls: ClassVar[bool] = False
    has_weights: ClassVar[bool] = True
    out_dims: ClassVar[int] = 1

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    @property
    def params(self) -> dict[str, str | int | float | bool]:
        """Options as resolved for this backbone."""
        return {}

    @property
    def reads_all(self) -> bool:
        """Whether every patch token that leaves the last block is read, so that the block must run whole."""
        return True

    @abstractmethod
    def forward(self, features: Features) -> Pooled:
        """Aggregate one batch."""
