"""An image of Pillow over memory of numpy: nothing is copied, and other libraries read and write it without Python's lock."""

from __future__ import annotations

import numpy as np
from PIL import Image


def image_over(pixels: np.ndarray) -> Image.Image:
    """Return an image of mode RGB that shows `pixels`, uint8 (H, W, 4), and keeps them; the fourth byte means nothing."""
    size = (pixels.shape[1], pixels.shape[0])
    # Pillow keeps RGB in four bytes. It maps RGBX only, and passes memory on to another image by Arrow's interface.
    return Image.fromarrow(Image.frombuffer("RGBX", size, pixels, "raw", "RGBX", 0, 1), "RGB", size)
