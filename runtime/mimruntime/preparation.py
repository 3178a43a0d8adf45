"""Decode one source to the graph's pixels within a memory budget."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mimruntime.decode import MAX_PIXELS, OpenedImage, Source, open_image
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.decoding.formats import FORMATS
from mimruntime.manifest import Preprocess
from mimruntime.preprocess import resize_memory, to_pixels


def prepare(
    source: Source,
    spec: Preprocess,
    budget: MemoryBudget,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: Iterable[str] = FORMATS,
    scaled: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Read the header, wait for the memory that decoding needs, decode and resize; return uint8 (size, size, 3).

    Args:
        source: as in `mimruntime.decode.decode`.
        spec: the manifest's `preprocess`.
        budget: the budget that all decoding threads share.
        max_pixels: larger images are refused by their header.
        formats: allowed names of `mimruntime.decoding.formats.FORMATS`.
        scaled: decode a JPEG at a half, a quarter or an eighth of its edges, if they stay twice as long as after the resize.
        out: as in `to_pixels`.

    Raises:
        ImageSizeError: the image needs more pixels, work or memory than allowed.
        ImageError, OptionError: as in `mimruntime.decode.decode`.

    """
    with open_image(source, max_pixels=max_pixels, formats=formats) as opened, budget.reserve(memory_for(opened, spec)):
        return to_pixels(opened.load(2 * spec.resize if scaled else None), spec, out)


def memory_for(opened: OpenedImage, spec: Preprocess) -> int:
    """Return an upper bound of the bytes that decoding and resizing take."""
    return max(opened.memory, opened.kept + resize_memory(opened.width, opened.height, spec))
