"""How a stored picture becomes the graph's square: the order of the passes, the turn, and the two matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mimruntime.gpu.coefficients import Coefficients, coefficients
from mimruntime.manifest import Interpolation, Preprocess
from mimruntime.preprocess import crop_offset, resized_edges

Order = Literal["rows", "columns"]
"""The pass that comes first."""

_TURNED = {5, 6, 7, 8}
_FLIPPED_ACROSS = {2, 3, 6, 7}
_FLIPPED_DOWN = {3, 4, 7, 8}
"""EXIF orientations, by what is done to the stored pixels after rows and columns were exchanged."""


class Side(NamedTuple):
    """One edge of the upright picture: the arguments of `coefficients`."""

    edge: int
    resized: int
    first: int
    size: int
    interpolation: Interpolation
    flipped: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The resize of one picture.

    Attributes:
        order: the pass that comes first, as Pillow chooses it.
        turned: whether rows and columns are exchanged before.
        across, down: the edges of the upright picture.

    """

    order: Order
    turned: bool
    across: Side
    down: Side

    def horizontal(self) -> Coefficients:
        """Return the matrices of the pass over rows, float32 (width, size)."""
        return coefficients(*self.across)

    def vertical(self) -> Coefficients:
        """Return the matrices of the pass over columns, float32 (size, height)."""
        high, low = coefficients(*self.down)
        return Coefficients(np.ascontiguousarray(high.T), np.ascontiguousarray(low.T))


def plan_resize(width: int, height: int, orientation: int, spec: Preprocess) -> Plan:
    """Return the plan of a stored picture.

    Args:
        width: px, as stored.
        height: px, as stored.
        orientation: of EXIF, 1 to 8.
        spec: the manifest's `preprocess`.

    """
    turned = orientation in _TURNED
    if turned:
        width, height = height, width
    across, down = resized_edges(width, height, spec)
    return Plan(
        _first_pass(width, height, across, down),
        turned,
        _side(width, across, spec, flipped=orientation in _FLIPPED_ACROSS),
        _side(height, down, spec, flipped=orientation in _FLIPPED_DOWN),
    )


def _side(edge: int, resized: int, spec: Preprocess, *, flipped: bool) -> Side:
    return Side(edge, resized, crop_offset(resized, spec.size), spec.size, spec.interpolation, flipped)


def _first_pass(width: int, height: int, across: int, down: int) -> Order:
    """Return the pass that Pillow takes first: columns if they shrink, and the rows do not or lose less than half as much."""
    shrinks = down < height
    return "columns" if shrinks and (across >= width or height - down > 2 * (width - across)) else "rows"
