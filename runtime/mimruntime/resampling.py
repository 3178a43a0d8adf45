"""Pillow's resize of a part of a picture, by cykooz_resizer where it is installed: the same two passes, vectorised."""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

import numpy as np
import PIL
from PIL import Image

from mimruntime.decoding.shared import image_over

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in px."""

_FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}
_REACH = 3
"""Of the widest filter (Lanczos), in pixels of the coarser of the two grids."""
_KNOWN_PILLOW = {12, 13}
"""Major versions whose images cykooz_resizer reads and writes in place; it goes by where they keep their rows."""


@functools.cache
def library() -> Any:
    """Return cykooz_resizer, or None where it is not installed or does not know this Pillow."""
    if int(PIL.__version__.partition(".")[0]) not in _KNOWN_PILLOW:
        return None
    try:
        return importlib.import_module("cykooz_resizer")
    except ImportError:
        return None


def shrink(image: Image.Image, box: Box, edges: tuple[int, int], out: np.ndarray, interpolation: str) -> None:
    """Write into `out`, uint8 (size, size, 3), the square that a crop would show of an image resized to `edges`.

    Pillow rounds to 8 bits between its two passes, so each pass is a call of its own, in Pillow's order.

    Args:
        image: mode RGB.
        box: what the crop shows, in px of `image`.
        edges: width and height of the whole image after the resize, px, no more than before.
        out: whose edge is that of the square.
        interpolation: as `mimruntime.manifest.Interpolation`.

    """
    left, top, right, bottom = box
    size = len(out)
    lost_width, lost_height = image.width - edges[0], image.height - edges[1]
    if lost_height > 2 * lost_width:
        first, last = _read(left, right, size, image.width)
        part = image_over(_pass(image, (first, top, last, bottom), (last - first, size), interpolation))
        square = _pass(part, (left - first, 0, right - first, size), (size, size), interpolation)
    else:
        first, last = _read(top, bottom, size, image.height)
        part = image_over(_pass(image, (left, first, right, last), (size, last - first), interpolation))
        square = _pass(part, (0, top - first, size, bottom - first), (size, size), interpolation)
    for channel in range(3):  # one by one: five times as fast as all three together
        out[:, :, channel] = square[:, :, channel]


def _read(low: float, high: float, size: int, edge: int) -> tuple[int, int]:
    """Return the whole pixels that resampling `low` to `high` to `size` px reads, at least."""
    reach = _REACH * max(1.0, (high - low) / size) + 1
    return max(0, math.floor(low - reach)), min(edge, math.ceil(high + reach))


def _pass(image: Image.Image, box: Box, size: tuple[int, int], interpolation: str) -> np.ndarray:
    lib, (left, top, right, bottom) = library(), box
    options = lib.ResizeOptions(
        resize_alg=lib.ResizeAlg.convolution(lib.FilterType[_FILTERS[interpolation]]),
        crop_box=lib.CropBox(left, top, right - left, bottom - top),
    )
    result = np.empty((size[1], size[0], 4), np.uint8)
    # A resizer of its own: it has a lock, which it holds while it works.
    lib.Resizer().resize_pil(image, image_over(result), options)
    return result
