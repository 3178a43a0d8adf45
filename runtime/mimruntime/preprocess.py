"""Turn an upright RGB image into the graph's uint8 square: timm's evaluation transform, with less work."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mimruntime import resampling
from mimruntime.errors import OptionError

if TYPE_CHECKING:
    from mimruntime.manifest import Preprocess

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SUPPORT = 3
"""Radius of the widest filter (Lanczos), in pixels of the coarser grid."""
_STRIP = 16
"""Aspect ratio beyond which an enlarged picture would be huge before the crop."""

_TALL = 100
"""Pillow's aspect ratio beyond which it resizes columns before rows."""
_COEFFICIENT_BYTES = 8 * (2 * _SUPPORT + 1)
"""Bytes per px of either edge; Pillow keeps a float64 for every px that a filter reaches."""
_RGB_BYTES = 4
_COPIED_BYTES = 6
"""Bytes per px of the square on its way out of Pillow: three in parts, and three together."""


def to_pixels(image: Image.Image, spec: Preprocess, out: np.ndarray | None = None) -> np.ndarray:
    """Resize and centre-crop as timm's `transforms_imagenet_eval` does.

    Args:
        image: an upright image in mode RGB.
        spec: the manifest's `preprocess`; `resize` is floor(size / crop_pct).
        out: the array for the pixels, such as a row of a batch; None allocates one.

    Returns:
        `out`, uint8 (size, size, 3). A portrait equals timm's to the byte. For a landscape, only the crop is computed; then
        some values differ by one grey level and a few by two. The cause is that Pillow rounds a box to float32, which
        changes roundings between its two passes, and a value of the second pass sums several of the first. With
        cykooz_resizer three values in a thousand differ by one, and one in some millions by two.

    Raises:
        OptionError: `resize` is shorter than `size`, so the crop would not fit in the picture.

    """
    if spec.resize < spec.size:
        raise OptionError(f"preprocess.resize {spec.resize} is shorter than preprocess.size {spec.size}")
    pixels = np.empty((spec.size, spec.size, 3), np.uint8) if out is None else out
    edges = resized_edges(image.width, image.height, spec)
    if resampling.library() and edges[0] <= image.width and edges[1] <= image.height:
        resampling.shrink(image, crop_box(*image.size, spec), edges, pixels, spec.interpolation)
    else:
        pixels[:] = _resized_by_pillow(image, spec)
    return pixels


def _resized_by_pillow(image: Image.Image, spec: Preprocess) -> np.ndarray:
    shorter, longer = sorted(image.size)
    strip, enlarged = longer > _STRIP * shorter, shorter < spec.resize
    if spec.mode == "shortest" and strip and enlarged:
        return _resize_inside(*_cut(image, crop_box(*image.size, spec), spec.size), spec)
    # Resizing only the crop is safe where Pillow computes the same as for the whole picture. It rounds boxes to float32,
    # which can be visible in an enlarged picture, and chooses the order of its two passes by the height of the result.
    if spec.mode == "shortest" and not strip and not enlarged and image.width >= image.height:
        return _resize_inside(image, crop_box(*image.size, spec), spec)
    return _resize_whole(image, spec)


def resized_edges(width: int, height: int, spec: Preprocess) -> tuple[int, int]:
    """Return width and height in px after the resize and before the crop, rounded as in torchvision."""
    if spec.mode == "squash":
        return spec.resize, spec.resize
    longer = int(spec.resize * max(width, height) / min(width, height))
    return (spec.resize, longer) if width <= height else (longer, spec.resize)


def crop_box(width: int, height: int, spec: Preprocess) -> resampling.Box:
    """Return the centre crop of an upright image of this size: left, top, right, bottom, in px before the resize."""
    across, down = resized_edges(width, height, spec)
    left, right = _crop_span(width, across, spec.size)
    top, bottom = _crop_span(height, down, spec.size)
    return left, top, right, bottom


def resize_memory(width: int, height: int, spec: Preprocess) -> int:
    """Return an upper bound of the bytes that `to_pixels` takes beside an image of this size."""
    shorter, longer = sorted((width, height))
    if spec.mode == "shortest" and longer > _STRIP * shorter and shorter < spec.resize:
        return (4 * _RGB_BYTES + _COPIED_BYTES) * spec.resize * spec.resize  # only a part of it is resized
    coefficients = _COEFFICIENT_BYTES * (width + height + 2 * spec.resize)
    across, down = resized_edges(width, height, spec)
    # Pillow resizes rows first, except in very tall images.
    between = width * down if height > _TALL * width else across * height
    return coefficients + _RGB_BYTES * (between + across * down) + _COPIED_BYTES * spec.size * spec.size


def _resize_whole(image: Image.Image, spec: Preprocess) -> np.ndarray:
    width, height = resized_edges(image.width, image.height, spec)
    left, top = crop_offset(width, spec.size), crop_offset(height, spec.size)
    whole = image.resize((width, height), _RESAMPLING[spec.interpolation])
    return np.asarray(whole.crop((left, top, left + spec.size, top + spec.size)))


def _resize_inside(image: Image.Image, box: resampling.Box, spec: Preprocess) -> np.ndarray:
    return np.asarray(image.resize((spec.size, spec.size), _RESAMPLING[spec.interpolation], box=box))


def _crop_span(source: int, resized: int, size: int) -> tuple[float, float]:
    offset, scale = crop_offset(resized, size), source / resized
    return offset * scale, min((offset + size) * scale, float(source))


def crop_offset(resized: int, size: int) -> int:
    """Return the offset of torchvision's centre crop of `size` px in an edge of `resized` px."""
    return round((resized - size) / 2.0)


def _cut(image: Image.Image, box: resampling.Box, size: int) -> tuple[Image.Image, resampling.Box]:
    """Cut a long strip to the part that resampling `box` reads, since float32 boxes are too coarse at large offsets."""
    left, top, right, bottom = box
    reach_x = math.ceil(_SUPPORT * max(1.0, (right - left) / size)) + 1
    reach_y = math.ceil(_SUPPORT * max(1.0, (bottom - top) / size)) + 1
    x0, y0 = max(0, math.floor(left) - reach_x), max(0, math.floor(top) - reach_y)
    x1, y1 = min(image.width, math.ceil(right) + reach_x), min(image.height, math.ceil(bottom) + reach_y)
    part = image.crop((x0, y0, x1, y1))
    return part, (left - x0, top - y0, min(right - x0, part.width), min(bottom - y0, part.height))
