"""Decode a JPEG by simplejpeg if it is installed: the same pixels as Pillow, by the same libjpeg-turbo, in less time."""

from __future__ import annotations

import functools
import importlib
import re
from typing import Any

import numpy as np
from PIL import ExifTags, Image

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ORIENTATION_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


@functools.cache
def library() -> Any:
    """Return simplejpeg, or None if it is not installed."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def decode_jpeg(data: bytes, size: tuple[int, int], part: int = 1) -> Image.Image | None:
    """Return the picture in mode RGB; None for files that Pillow must decode, which includes all damaged files.

    Args:
        data: a whole file of one or three components.
        size: width and height in px by its header; no more pixels are written.
        part: the divisor of both edges: 1, 2, 4 or 8.

    """
    width, height = (-(-edge // part) for edge in size)
    pixels = np.empty((height, width, 4), np.uint8)
    scaled = {} if part == 1 else {"min_width": width, "min_height": height}
    try:
        decoded = library().decode_jpeg(data, "RGBX", fastdct=False, fastupsample=False, buffer=pixels, **scaled)
    except (ValueError, RuntimeError):  # simplejpeg is strict: it also raises for libjpeg's warnings
        return None
    return _image_over(pixels) if decoded.shape == pixels.shape else None


def _image_over(pixels: np.ndarray) -> Image.Image:
    """Return an RGB image that shares the memory of `pixels`, uint8 (H, W, 4), and keeps it; the fourth byte is unused."""
    size = (pixels.shape[1], pixels.shape[0])
    # Pillow stores RGB in four bytes. It can map only RGBX, and shares memory with another image by Arrow's interface.
    return Image.fromarrow(Image.frombuffer("RGBX", size, pixels, "raw", "RGBX", 0, 1), "RGB", size)


def orientation_in(segments: list[bytes]) -> int:
    """Return the EXIF orientation, 1 to 8, that Pillow finds in a file with these APP1 segments."""
    try:
        found = _in_exif([body for body in segments if body.startswith(_EXIF)])
        return int(_in_xmp(segments) if found is None else found)
    except Exception:  # the pixels may be intact; damaged metadata raises many types of error
        return 1


def _in_exif(blocks: list[bytes]) -> Any:
    if not blocks:
        return None
    exif = Image.Exif()
    exif.load(blocks[0] + b"".join(body[len(_EXIF) :] for body in blocks[1:]))
    return exif.get(ExifTags.Base.Orientation)


def _in_xmp(segments: list[bytes]) -> int:
    packets = [body for body in segments if body.startswith(_XMP)]
    found = _ORIENTATION_IN_XMP.search(packets[-1]) if packets else None
    return int(found[1]) if found else 1
