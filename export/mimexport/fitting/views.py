"""The pixels of an image for the backbone: the whole image as in deployment, or a random view to learn without labels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mimruntime.decode import Source, decode
from mimruntime.manifest import Preprocess
from mimruntime.preprocess import to_pixels

WHOLE = -1
"""The whole image, as in deployment; views 0, 1 … are random crops."""

_AREA = (0.3, 1.0)
_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


def show(source: Source, index: int, view: int, seed: int, preprocess: Preprocess) -> np.ndarray:
    """Return a view of an image as pixels for the graph, uint8 (size, size, 3); the same arguments give the same pixels.

    A random view is a crop of 30 % to 100 % of the area with aspect 3:4 to 4:3, flipped with probability 0.5.

    Raises:
        ImageError: the source cannot be decoded.
    """
    image = decode(source)
    if view == WHOLE:
        return to_pixels(image, preprocess)
    box, flipped = draw_crop(image.size, index, view, seed)
    resized = image.resize((preprocess.size, preprocess.size), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(resized)
    return np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels


def draw_crop(size: tuple[int, int], index: int, view: int, seed: int) -> tuple[tuple[int, int, int, int], bool]:
    """Return the box (left, top, right, bottom), px, of a random view of an image of `size`, and whether it is flipped."""
    rng = np.random.default_rng((seed, view, index))
    return _crop(size, rng), bool(rng.random() < 0.5)


def _crop(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a random crop, px; the whole image if none fits in `_ATTEMPTS` attempts."""
    width, height = size
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*_AREA)
        ratio = np.exp(rng.uniform(*np.log(_RATIO)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            return int(left), int(top), int(left + w), int(top + h)
    return 0, 0, width, height
