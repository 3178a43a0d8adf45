"""Move the subject of each image out of the centre, to test aggregators that prefer the centre.

Photographs usually show their subject in the centre, so such an aggregator looks better than it is. Each image is changed
in one of three ways that keep the subject and move it towards a random corner:

- mirror: moved by a quarter to a third of its edge; the uncovered area is filled with its mirror image.
- crop: a window of two thirds of its edge, in a corner of the image.
- canvas: put in a corner of a canvas with edges 1.5 times as long, filled with the mean colour of its border.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from mimeval.datasets.dataset import Dataset, Split, digest_of
from mimeval.datasets.pixels import png

PREFIX = "shifted"
_VERSION = "1"
_SHIFT = (1 / 4, 1 / 3)
_WINDOW = 2 / 3
_CANVAS = 3 / 2

Corner = tuple[bool, bool]
"""Whether the subject moves down, and whether it moves right."""


def shift(dataset: Dataset, kinds: Sequence[str], *, seed: int = 0) -> Dataset:
    """Return `dataset` with all images, including training images, changed in a random one of `kinds`.

    Args:
        dataset: any data set.
        kinds: names in `KINDS`.
        seed: seed, combined with the image's name, of kind, corner and distance.

    """
    train = None if dataset.train is None else _shifted(dataset.train, kinds, seed)
    named = "-".join((PREFIX, *kinds)) if len(kinds) < len(KINDS) else PREFIX
    note = f"images are shown with their subject out of the centre ({', '.join(kinds)})"
    shown = replace(dataset, name=f"{named}:{dataset.name}", test=_shifted(dataset.test, kinds, seed), train=train)
    return shown.with_notes(note)


def parse_shift(spec: str) -> tuple[tuple[str, ...], str]:
    """Parse `shifted:SPEC` (all kinds) or `shifted-KIND:SPEC`; return the kinds, empty for other text, and SPEC."""
    head, colon, rest = spec.partition(":")
    if colon and head == PREFIX:
        return tuple(KINDS), rest
    kind = head.removeprefix(f"{PREFIX}-")
    return ((kind,), rest) if colon and head != kind and kind in KINDS else ((), spec)


def kind_of(name: str, kinds: Sequence[str], seed: int) -> str:
    """Return the kind of change for the image `name`."""
    return kinds[int(_random(name, seed).integers(len(kinds)))]


def _shifted(split: Split, kinds: Sequence[str], seed: int) -> Split:
    def load(row: int) -> bytes:
        name = split.names[row]
        rng = _random(name, seed)
        change = KINDS[kinds[int(rng.integers(len(kinds)))]]
        with Image.open(io.BytesIO(split.load(row))) as image:
            pixels = np.asarray(image.convert("RGB"))
        down, right = rng.random(2) < 0.5
        return png(change(pixels, (bool(down), bool(right)), rng))

    return replace(split, load=load, digest=digest_of(PREFIX, _VERSION, *kinds, str(seed), split.digest))


def _random(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


def _mirror(pixels: np.ndarray, corner: Corner, rng: np.random.Generator) -> np.ndarray:
    by = [round(edge * rng.uniform(*_SHIFT)) for edge in pixels.shape[:2]]
    pad = [(step, 0) if towards else (0, step) for step, towards in zip(by, corner, strict=True)]
    padded = np.pad(pixels, [*pad, (0, 0)], "symmetric")
    starts = [0 if towards else step for step, towards in zip(by, corner, strict=True)]
    return padded[starts[0] : starts[0] + pixels.shape[0], starts[1] : starts[1] + pixels.shape[1]]


def _crop(pixels: np.ndarray, corner: Corner, _: np.random.Generator) -> np.ndarray:
    height, width = (max(1, round(edge * _WINDOW)) for edge in pixels.shape[:2])
    # In a window at the top of the image, the image's centre is low.
    rows = slice(0, height) if corner[0] else slice(pixels.shape[0] - height, None)
    columns = slice(0, width) if corner[1] else slice(pixels.shape[1] - width, None)
    return pixels[rows, columns]


def _canvas(pixels: np.ndarray, corner: Corner, _: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    canvas = np.empty((round(height * _CANVAS), round(width * _CANVAS), 3), np.uint8)
    canvas[:] = border.mean(axis=0).round()
    top = canvas.shape[0] - height if corner[0] else 0
    left = canvas.shape[1] - width if corner[1] else 0
    canvas[top : top + height, left : left + width] = pixels
    return canvas


KINDS: dict[str, Callable[[np.ndarray, Corner, np.random.Generator], np.ndarray]] = {
    "mirror": _mirror,
    "crop": _crop,
    "canvas": _canvas,
}
