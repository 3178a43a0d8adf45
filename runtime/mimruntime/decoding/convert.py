"""Convert a loaded Pillow image of any mode and orientation to upright RGB."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from mimruntime.decoding.cost import ALPHA_MODES, STRIP
from mimruntime.errors import ImageError

_ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to mode RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ImageError("holds 32-bit floats, whose range is not defined; expected 8 or 16 bits, convert it first")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scaled_to_8_bits(image)
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("holds integers beyond 16 bits, whose range is not defined; expected 8 or 16 bits")
    grey = np.empty(values.shape, np.uint8)
    for rows in _strips(image):
        grey[rows] = (values[rows].astype(np.uint32) * 255 + 32767) // 65535
    return Image.fromarray(grey).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    result = Image.new("RGB", image.size)
    for rows in _strips(image):
        strip = image.crop((0, rows.start, image.width, rows.stop))
        picture = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        result.paste(Image.alpha_composite(white, picture).convert("RGB"), (0, rows.start))
    return result


def _strips(image: Image.Image) -> Iterator[slice]:
    """Yield slices of rows of some megapixels each: intermediate results need many times the memory of the image."""
    step = max(1, STRIP // image.width)
    for start in range(0, image.height, step):
        yield slice(start, min(start + step, image.height))


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 for a damaged EXIF block, since the pixels may be intact."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # Pillow raises many types of error for damaged files
        return 1


def turned_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return the image turned upright by its EXIF orientation; the same image if it is upright."""
    turn = UPRIGHT.get(orientation)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info.clear()  # else the next decoder would turn the result again
    return turned
