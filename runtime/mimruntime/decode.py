"""Anything that holds one picture becomes an upright RGB image of Pillow."""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile

from mimruntime.errors import ImageError, ImageFormatError, ImageSizeError, OptionError
from mimruntime.images import open_regular

Source = str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray
"""A path, the bytes of an encoded file, an image of Pillow, or uint8 pixels (H, W, 3) or (H, W)."""

MAX_PIXELS = 89_478_485
"""Pillow's own default: a quarter of a gigabyte at three bytes a pixel."""

# Pillow's classes are called directly: `Image.open` imports every plugin it has and warns of large images on stderr.
_PLUGINS = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WebP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
}
FORMATS = tuple(_PLUGINS)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}
_STRIP = 1 << 21
"""Pixels."""
_LOADING = threading.Lock()


def decode(source: Source, *, max_pixels: int = MAX_PIXELS, formats: Iterable[str] = FORMATS) -> Image.Image:
    """Return the picture in `source`, upright, in mode RGB.

    The format is recognised by content, never by name. The first frame of an animation is taken, EXIF orientation is
    applied, transparent parts become white, 16-bit grey is scaled to 8 bits, palettes, grey and CMYK become RGB.

    Args:
        source: path, encoded bytes, Pillow image, or uint8 array (H, W, 3) or (H, W).
        max_pixels: images of more are refused by their header, before any pixel is decoded.
        formats: those of `FORMATS` that are let in.

    Raises:
        ImageFormatError: the format is unknown or not among `formats`.
        ImageSizeError: more than `max_pixels`.
        ImageError: anything else came; the text names the source, what it is and what was expected.
        OptionError: `formats` names one that does not exist.

    """
    allowed = _known_formats(formats)
    try:
        if isinstance(source, np.ndarray):
            return _from_array(source, max_pixels)
        if isinstance(source, Image.Image):
            return _from_image(source, max_pixels)
        if isinstance(source, bytes | bytearray | memoryview):
            return _from_stream(io.BytesIO(source), allowed, max_pixels)
        if isinstance(source, str | Path):
            with open_regular(source) as stream:
                return _from_stream(stream, allowed, max_pixels)
    except ImageError as error:
        raise type(error)(f"{describe(source)}: {error}") from error.__cause__
    except Exception as error:  # Pillow meets damage with a dozen types, SyntaxError and struct.error among them
        raise ImageError(f"{describe(source)}: cannot be read ({_reason(error)})") from error
    raise ImageError(
        f"{describe(source)}: expected a path, encoded bytes, a Pillow image or a uint8 array (H, W, 3) or (H, W)"
    )


def describe(source: object) -> str:
    """Return a few words that let a person find `source` again."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source):,} bytes"
    if isinstance(source, Image.Image):
        return f"Pillow image {source.mode} {source.width}x{source.height}"
    if isinstance(source, np.ndarray):
        return f"array {source.dtype} {source.shape}"
    return f"object of type {type(source).__name__}"


def _known_formats(formats: Iterable[str]) -> tuple[str, ...]:
    allowed = tuple(formats)
    for name in allowed:
        if name not in _PLUGINS:
            raise OptionError(f"unknown image format '{name}'; known: {', '.join(FORMATS)}")
    return allowed


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise ImageError("expected uint8 pixels of shape (H, W, 3) or (H, W), values 0 to 255")
    _check_size(array.shape[1], array.shape[0], max_pixels)
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _from_image(image: Image.Image, max_pixels: int) -> Image.Image:
    _check_size(image.width, image.height, max_pixels)
    # A Pillow image may be lazy and may stand in a list twice: two threads must not load it at once.
    with _LOADING:
        own = image.copy()
        orientation = _orientation(image)
    return _turned(_rgb(own), orientation)


def _from_stream(stream: IO[bytes], allowed: tuple[str, ...], max_pixels: int) -> Image.Image:
    image = _open_header(stream, allowed)
    _check_size(image.width, image.height, max_pixels)
    image.load()
    # After load, not before: a TIFF turns itself upright while loading and forgets its tag.
    return _turned(_rgb(image), _orientation(image))


def _open_header(stream: IO[bytes], allowed: tuple[str, ...]) -> ImageFile.ImageFile:
    head = stream.read(16)
    if not head:
        raise ImageError("is empty, 0 bytes")
    name = _format_of(head)
    if name is None:
        raise ImageFormatError(
            f"is not an image of a known format ({', '.join(allowed)}); it starts with {head[:12]!r}"
        )
    if name not in allowed:
        raise ImageFormatError(f"is a {name} image, which is not let in here; expected {', '.join(allowed)}")
    stream.seek(0)
    module, plugin = _PLUGINS[name]
    factory: Any = getattr(importlib.import_module(module), plugin)
    image: ImageFile.ImageFile = factory(stream)
    return image


def _format_of(head: bytes) -> str | None:
    """Return the format whose signature opens `head`, the first 16 bytes of a file."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    signatures = {
        "JPEG": (b"\xff\xd8\xff",),
        "PNG": (b"\x89PNG\r\n\x1a\n",),
        "GIF": (b"GIF87a", b"GIF89a"),
        "BMP": (b"BM",),
        "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    }
    return next((name for name, starts in signatures.items() if head.startswith(starts)), None)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"has no pixels: {width}x{height}")
    if width * height > max_pixels:
        raise ImageSizeError(f"is {width}x{height}, {width * height:,} pixels; at most {max_pixels:,} are decoded")


def _rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image in mode RGB, whatever mode it came in."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ImageError("holds 32-bit floats, whose range is not defined; expected 8 or 16 bits, convert it first")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scaled_to_8_bits(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
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
    """Yield rows, some megapixels at a time: what is made of them on the way takes many times the memory of the image."""
    step = max(1, _STRIP // image.width)
    for start in range(0, image.height, step):
        yield slice(start, min(start + step, image.height))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; a damaged EXIF block says nothing about the pixels, so it counts as 1."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # as many types as for the image itself
        return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0].strip() or type(error).__name__
