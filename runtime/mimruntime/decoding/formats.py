"""The supported formats: the signature, the container reader and the Pillow plugin of each."""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Callable, Iterable
from typing import IO, Any

from PIL import ImageFile

from mimruntime.decoding.container import Container
from mimruntime.decoding.gif import read_gif
from mimruntime.decoding.heif import read_avif, read_heic
from mimruntime.decoding.jpeg import read_jpeg
from mimruntime.decoding.jpeg2000 import read_jpeg2000
from mimruntime.decoding.png import read_png
from mimruntime.decoding.tiff import read_tiff
from mimruntime.decoding.webp import read_webp
from mimruntime.errors import ImageError, ImageFormatError, MissingExtraError, OptionError

# Call Pillow's plugins directly: `Image.open` imports every plugin and warns of large images on stderr.
_PLUGINS = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WebP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIC": ("pillow_heif", "HeifImageFile"),
    "JPEG2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
}
_READERS: dict[str, Callable[[IO[bytes]], Container]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WebP": read_webp,
    "GIF": read_gif,
    "TIFF": read_tiff,
    "AVIF": read_avif,
    "HEIC": read_heic,
    "JPEG2000": read_jpeg2000,
}
FORMATS = tuple(_PLUGINS)

_SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JPEG2000": (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
}
_BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"},
}
_ANY_BRANDS = {b"mif1", b"msf1", b"mif2"}
_HEAD = 64
"""Bytes at the start of a file that identify its format."""


def known_formats(names: Iterable[str]) -> tuple[str, ...]:
    """Check that all names are in `FORMATS`, and return them.

    Raises:
        OptionError: a name is unknown.

    """
    allowed = tuple(names)
    for name in allowed:
        if name not in _PLUGINS:
            raise OptionError(f"unknown image format '{name}'; known: {', '.join(FORMATS)}")
    return allowed


def check_readable(names: Iterable[str]) -> None:
    """Refuse formats that cannot be read here.

    Raises:
        OptionError: a format is not in `FORMATS`.
        MissingExtraError: the library for a format is not installed.

    """
    for name in known_formats(names):
        _plugin(name)


def recognise(stream: IO[bytes], allowed: tuple[str, ...]) -> str:
    """Return the format of a stream at its start, if it is in `allowed`.

    Raises:
        ImageError: the file is empty.
        ImageFormatError: the format is unknown or not allowed.

    """
    head = stream.read(_HEAD)
    if not head:
        raise ImageError("is empty, 0 bytes")
    name = _format_of(head)
    if name is None:
        raise ImageFormatError(
            f"is not an image of a known format ({', '.join(allowed)}); it starts with {head[:12]!r}"
        )
    if name not in allowed:
        raise ImageFormatError(f"is a {name} image, which is not allowed here; expected {', '.join(allowed)}")
    stream.seek(0)
    return name


def read_container(name: str, stream: IO[bytes]) -> Container:
    """Read the container of a file of the format `name`; raises as its reader does."""
    return _READERS[name](stream) if name in _READERS else Container()


def open_plugin(name: str, stream: IO[bytes]) -> ImageFile.ImageFile:
    """Open a file of the format `name`, without decoding it.

    Raises:
        ImageError: the library for the format is not installed.

    """
    try:
        factory = _plugin(name)
    except MissingExtraError as error:
        raise ImageError(str(error)) from error
    image: ImageFile.ImageFile = factory(_still(stream) if name == "AVIF" else stream)
    return image


def _plugin(name: str) -> Any:
    module, plugin = _PLUGINS[name]
    try:
        return getattr(importlib.import_module(module), plugin)
    except ImportError as error:
        raise MissingExtraError(f"the format {name}", extra="heif") from error


def _format_of(head: bytes) -> str | None:
    """Return the format whose signature starts `head`, the first bytes of a file."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _format_of_brands(head)
    return next((name for name, starts in _SIGNATURES.items() if head.startswith(starts)), None)


def _format_of_brands(head: bytes) -> str | None:
    """Return the format by the first box of an ISO media file: by its major brand, then by its compatible brands."""
    end = min(len(head), struct.unpack(">I", head[:4])[0])
    brands = [head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))]
    brands = brands[1:] if brands[0] in _ANY_BRANDS else brands[:1]
    return next((name for brand in brands for name, known in _BRANDS.items() if brand in known), None)


def _still(stream: IO[bytes]) -> IO[bytes]:
    """Return an AVIF file from which libavif reads the still picture, not an image sequence beside it."""
    content = stream.read()
    return io.BytesIO(content[:8] + b"avif" + content[12:])
