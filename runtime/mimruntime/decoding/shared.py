"""A Pillow image that shares memory with numpy, without a copy; other libraries can use it without Python's lock."""

from __future__ import annotations

import numpy as np
from PIL import Image


def image_over(pixels: np.ndarray) -> Image.Image:
    """Return an RGB image that shares the memory of `pixels`, uint8 (H, W, 4), and keeps it; the fourth byte is unused."""
    size = (pixels.shape[1], pixels.shape[0])
    # Pillow stores RGB in four bytes. It can map only RGBX, and shares memory with another image by Arrow's interface.
    return Image.fromarrow(Image.frombuffer("RGBX", size, pixels, "raw", "RGBX", 0, 1), "RGB", size)
