"""The coefficients of Pillow's resize as matrices, for one edge of a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mimruntime.manifest import Interpolation

_BITS = 22
"""Pillow's coefficients for 8-bit pixels are multiples of 2**-22."""
_LOW_BITS = 11


def _bilinear(x: np.ndarray) -> np.ndarray:
    weight: np.ndarray = np.maximum(0.0, 1.0 - np.abs(x))
    return weight


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


_FILTERS: dict[Interpolation, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "bilinear": (1.0, _bilinear),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}
"""Support in px and weight by distance."""


class Coefficients(NamedTuple):
    """The matrix of one edge, float32 (edge, size), as the sum of two.

    A product of 8-bit pixels with either is exact in float32, in whatever order a device adds, up to 64 pixels a value. With
    their sum it is not. Of more pixels, the last of 22 bits may differ.

    Attributes:
        high: multiples of 2**-11.
        low: the rest, multiples of 2**-22.

    """

    high: np.ndarray
    low: np.ndarray


def coefficients(
    edge: int, resized: int, first: int, size: int, interpolation: Interpolation, flipped: bool
) -> Coefficients:
    """Return what every pixel of an edge adds to every pixel of its resized and cropped edge.

    Args:
        edge: length before, px.
        resized: length of the whole edge after the resize, px.
        first: first pixel of the crop after the resize.
        size: length of the crop, px.
        interpolation: as in the manifest; antialiased, as in Pillow.
        flipped: whether the pixels lie in the opposite order.

    """
    support, weight = _FILTERS[interpolation]
    scale = edge / resized
    wide = max(scale, 1.0)
    centres = (np.arange(first, first + size) + 0.5) * scale
    low = np.maximum(0, (centres - support * wide + 0.5).astype(np.int64))
    high = np.minimum(edge, (centres + support * wide + 0.5).astype(np.int64))
    taps = low[:, None] + np.arange(2 * math.ceil(support * wide) + 1)
    inside = taps < high[:, None]
    weights = np.where(inside, weight((taps - centres[:, None] + 0.5) * (1.0 / wide)), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    fixed = (weights * 2**_BITS + np.copysign(0.5, weights)).astype(np.int32)
    rounded = (fixed + (1 << _LOW_BITS - 1)) >> _LOW_BITS << _LOW_BITS
    rows = edge - 1 - taps if flipped else taps
    places = (rows * size + np.arange(size)[:, None])[inside]
    both = Coefficients(np.zeros((edge, size), np.float32), np.zeros((edge, size), np.float32))
    for matrix, values in zip(both, (rounded, fixed - rounded), strict=True):
        matrix.ravel()[places] = values[inside] * 2.0**-_BITS
    return both
