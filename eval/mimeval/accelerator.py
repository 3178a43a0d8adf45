"""The seam for a GPU: who computes the large products of an evaluation instead of NumPy and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import numpy as np

Loss = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""weights (C, D + 1), the last column intercepts -> the mean loss, and its gradient, float64 (C, D + 1)."""


class Accelerator(Protocol):
    """Computes in float32 on a GPU, with the results of the CPU but for rounding; the torch side provides it."""

    def nearest(
        self, queries: np.ndarray, gallery: np.ndarray, k: int, *, leave_one_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the k most similar rows of `gallery` for each query; see `mimeval.neighbours.nearest`."""

    def cross_entropy(self, table: np.ndarray, targets: np.ndarray) -> Loss:
        """Return the mean cross-entropy of a linear classifier, with its gradient, as a function of its weights.

        Args:
            table: (n, D) float32.
            targets: (n,) int64 in [0, C).

        """


# Not an argument: nearest neighbours are searched deep inside metrics, which are handed plain arrays.
_CURRENT: ContextVar[Accelerator | None] = ContextVar("accelerator", default=None)


@contextmanager
def accelerated(by: Accelerator | None) -> Iterator[None]:
    """Let `by` compute the large products in this block; None leaves them to the CPU."""
    token = _CURRENT.set(by)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def accelerator() -> Accelerator | None:
    """Return what computes the large products here, or None."""
    return _CURRENT.get()
