"""Draw the selection over its image: patches are coloured by their weight; those that do not count are grey or black."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mimruntime.manifest import Preprocess
from mimruntime.preprocess import crop_box
from mimruntime.resampling import Box

_STOPS = np.array([[38, 12, 82, 168], [176, 48, 92, 138], [255, 199, 102, 46]], np.float64)
"""Red, green, blue and opacity at weight 0, at half the largest and at the largest: dark for low, clear for high weights."""
_UNSELECTED = (124, 126, 132, 206)
"""Colour of a patch that the encoder reads and whose own weight is 0."""
_DROPPED = (22, 22, 26, 240)
"""Colour of a patch that left the encoder early, and of the area outside the crop."""
LEGEND = (
    ("counts little", tuple(int(value) for value in _STOPS[0, :3])),
    ("counts most", tuple(int(value) for value in _STOPS[2, :3])),
    ("not selected", _UNSELECTED[:3]),
    ("dropped early, or outside of the crop", _DROPPED[:3]),
)
"""What each colour means, red, green and blue."""


def overlay(weights: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
    """Return colours RGBA uint8 (gh, gw, 4) of patches.

    Args:
        weights: float32 (gh, gw); colours are relative to the largest.
        kept: bool (gh, gw), which patches stayed in the encoder; None: all.

    """
    share = weights / max(float(weights.max()), np.finfo(np.float32).tiny)
    colours = np.stack([np.interp(share, (0, 0.5, 1), _STOPS[:, channel]) for channel in range(4)], axis=-1)
    colours[weights <= 0] = _UNSELECTED
    if kept is not None:
        colours[~kept] = _DROPPED
    return np.asarray(np.rint(colours), np.uint8)


def draw(
    image: Image.Image, weights: np.ndarray, kept: np.ndarray | None, spec: Preprocess, *, longest: int = 1024
) -> Image.Image:
    """Return an upright RGB image with its selection drawn over it, at most `longest` px wide or high.

    Args:
        image: the whole image from `mimruntime.decode.decode`.
        weights: as in `overlay`.
        kept: as in `overlay`.
        spec: the preprocessing, which determines the positions of the patches.
        longest: largest edge in px.

    """
    box = crop_box(*image.size, spec)
    shown = image.copy()
    shown.thumbnail((longest, longest))
    box_shown = _scaled(box, shown.width / image.width, shown.height / image.height)
    left, top, right, bottom = box_shown
    layer = Image.new("RGBA", shown.size, _DROPPED)
    patches = Image.fromarray(overlay(weights, kept)).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    layer.paste(patches, (left, top))
    return Image.alpha_composite(shown.convert("RGBA"), layer).convert("RGB")


def _scaled(box: Box, across: float, down: float) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    x, y = round(left * across), round(top * down)
    return x, y, max(round(right * across), x + 1), max(round(bottom * down), y + 1)
