"""Resize a part of a picture as Pillow does, by cykooz_resizer if it is installed: the same two passes, vectorised."""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

import numpy as np
import PIL
from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in px."""

_FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}
_REACH = 3
"""Radius of the widest filter (Lanczos), in pixels of the coarser grid."""
_KNOWN_PILLOW = {12, 13}
"""Major versions of Pillow whose images cykooz_resizer reads and writes in place; it depends on their memory layout."""


@functools.cache
def library() -> Any:
    """Return cykooz_resizer, or None if it is not installed or does not support this version of Pillow."""
    if int(PIL.__version__.partition(".")[0]) not in _KNOWN_PILLOW:
        return None
    try:
        return importlib.import_module("cykooz_resizer")
    except ImportError:
        return None


def shrink(image: Image.Image, box: Box, edges: tuple[int, int], out: np.ndarray, interpolation: str) -> None:
    """Write the square crop of an image resized to `edges` into `out`, uint8 (size, size, 3).

    Pillow rounds to 8 bits between its two passes, so each pass is a separate call, in Pillow's order.

    Args:
        image: an image in mode RGB.
        box: the crop in px of `image`.
        edges: width and height in px of the whole image after the resize, at most those of `image`.
        out: the array for the square.
        interpolation: as in `mimruntime.manifest.Interpolation`.

    """
    left, top, right, bottom = box
    size = len(out)
    lost_width, lost_height = image.width - edges[0], image.height - edges[1]
    if lost_height > 2 * lost_width:
        first, last = _read(left, right, size, image.width)
        part = _pass(image, (first, top, last, bottom), (last - first, size), interpolation)
        square = _pass(part, (left - first, 0, right - first, size), (size, size), interpolation)
    else:
        first, last = _read(top, bottom, size, image.height)
        part = _pass(image, (left, first, right, last), (size, last - first), interpolation)
        square = _pass(part, (0, top - first, size, bottom - first), (size, size), interpolation)
    out[:] = np.frombuffer(square.tobytes(), np.uint8).reshape(out.shape)


def _read(low: float, high: float, size: int, edge: int) -> tuple[int, int]:
    """Return the range of whole pixels that must be read to resample `low` to `high` into `size` px."""
    reach = _REACH * max(1.0, (high - low) / size) + 1
    return max(0, math.floor(low - reach)), min(edge, math.ceil(high + reach))


def _pass(image: Image.Image, box: Box, size: tuple[int, int], interpolation: str) -> Image.Image:
    lib, (left, top, right, bottom) = library(), box
    options = lib.ResizeOptions(
        resize_alg=lib.ResizeAlg.convolution(lib.FilterType[_FILTERS[interpolation]]),
        crop_box=lib.CropBox(left, top, right - left, bottom - top),
    )
    result = Image.new("RGB", size, None)
    # A new resizer for every call: it holds a lock while it works.
    lib.Resizer().resize_pil(image, result, options)
    return result
