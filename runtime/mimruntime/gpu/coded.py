"""Choose what decodes an image: the GPU if it is a JPEG that it decodes as the CPU does, else the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mimruntime.decode import OpenedImage, Source, open_image
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.decoding.formats import FORMATS
from mimruntime.gpu.plan import Plan, plan_resize
from mimruntime.manifest import Preprocess
from mimruntime.preparation import memory_for
from mimruntime.preprocess import to_pixels

MOST_PIXELS = 1 << 25
"""Largest picture for the GPU: the resize takes 15 bytes per pixel of its memory."""
_LONGEST = 8192
"""Longest edge for the GPU, px; its matrix has 4 bytes per px of the result."""


@dataclass(frozen=True, slots=True, eq=False)
class GpuJpeg:
    """A JPEG that the GPU is to decode.

    Attributes:
        source: what it was read from.
        data: the whole file.
        width, height: px, as stored.
        plan: the resize, which also turns it upright.

    """

    source: Source
    data: bytes
    width: int
    height: int
    plan: Plan


def read_for_gpu(
    source: Source,
    spec: Preprocess,
    budget: MemoryBudget,
    most_bytes: int,
    *,
    formats: Iterable[str] = FORMATS,
    out: np.ndarray,
) -> GpuJpeg | None:
    """Read an image for the GPU; if it is none for the GPU, decode it as `mimruntime.preparation.prepare` does.

    What an image takes depends on the image and the options alone, not on the moment.

    Args:
        source: as in `mimruntime.decode.decode`.
        spec: the manifest's `preprocess`.
        budget: the budget of the decoding threads.
        most_bytes: largest file for the GPU, since files wait in memory until their batch is complete.
        formats: allowed names of `mimruntime.decoding.formats.FORMATS`.
        out: the array for the pixels of an image that the CPU decodes, uint8 (size, size, 3).

    Returns:
        The file; None if `out` was written.

    Raises:
        ImageError, OptionError: as `mimruntime.preparation.prepare`, whichever way an image takes.

    """
    with open_image(source, formats=formats) as opened:
        memory = memory_for(opened, spec)
        budget.check(memory)
        data = _for_gpu(opened, most_bytes)
        if data is not None and opened.jpeg is not None:
            plan = plan_resize(opened.width, opened.height, opened.jpeg.orientation, spec)
            return GpuJpeg(source, data, opened.width, opened.height, plan)
        with budget.reserve(memory):
            to_pixels(opened.load(), spec, out)
    return None


def _for_gpu(opened: OpenedImage, most_bytes: int) -> bytes | None:
    if opened.jpeg is None or opened.jpeg.length > most_bytes or max(opened.width, opened.height) > _LONGEST:
        return None
    return opened.jpeg.read() if opened.width * opened.height <= MOST_PIXELS else None
