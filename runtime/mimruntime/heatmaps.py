"""The selection drawn over its image: colour by the weight of a patch, grey where a patch is not read at all."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mimruntime.manifest import Preprocess
from mimruntime.preprocess import crop_box
from mimruntime.resampling import Box

_STOPS = np.array([[38, 12, 82, 168], [176, 48, 92, 138], [255, 199, 102, 46]], np.float64)
"""Red, green, blue and opacity at weight 0, half and all of the largest: dark, and clear where the model looks most."""
_UNREAD = (84, 84, 90, 204)
"""Of a patch of weight 0."""
_OUTSIDE = (84, 84, 90, 230)
"""Of what the crop leaves out."""


def overlay(weights: np.ndarray) -> np.ndarray:
    """Return the colours of a selection, RGBA uint8 (gh, gw, 4), for weights float32 (gh, gw); the largest counts as full."""
    share = weights / max(float(weights.max()), np.finfo(np.float32).tiny)
    colours = np.stack([np.interp(share, (0, 0.5, 1), _STOPS[:, channel]) for channel in range(4)], axis=-1)
    colours[weights <= 0] = _UNREAD
    return np.asarray(np.rint(colours), np.uint8)


def draw(image: Image.Image, weights: np.ndarray, spec: Preprocess, *, longest: int = 1024) -> Image.Image:
    """Return an upright RGB image with its selection over it, at most `longest` px wide or high.

    Args:
        image: whole, as `mimruntime.decode.decode` gives it.
        weights: of its patches, float32 (gh, gw).
        spec: how the image became the graph's input, which says where the patches lie.
        longest: px.

    """
    box = crop_box(*image.size, spec)
    shown = image.copy()
    shown.thumbnail((longest, longest))
    box_shown = _scaled(box, shown.width / image.width, shown.height / image.height)
    left, top, right, bottom = box_shown
    layer = Image.new("RGBA", shown.size, _OUTSIDE)
    patches = Image.fromarray(overlay(weights)).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    layer.paste(patches, (left, top))
    return Image.alpha_composite(shown.convert("RGBA"), layer).convert("RGB")


def _scaled(box: Box, across: float, down: float) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    x, y = round(left * across), round(top * down)
    return x, y, max(round(right * across), x + 1), max(round(bottom * down), y + 1)
