"""Decode any source of one picture to an upright RGB Pillow image."""

from __future__ import annotations

import contextlib
import io
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile

from mimruntime.decoding import turbo
from mimruntime.decoding.container import Container, length_of
from mimruntime.decoding.convert import UPRIGHT, orientation_of, to_rgb, turned_upright
from mimruntime.decoding.cost import RGB_BYTES, check_seconds, converted_memory, cost_of, cost_of_jpeg, is_plain_jpeg
from mimruntime.decoding.formats import FORMATS, known_formats, open_plugin, read_container, recognise
from mimruntime.decoding.tiff import add_parts
from mimruntime.errors import ImageError, ImageSizeError, MimError
from mimruntime.image_paths import open_small

Source = str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray
"""A path, the bytes of an encoded file, a Pillow image, or uint8 pixels (H, W, 3) or (H, W)."""

MAX_PIXELS = 89_478_485
"""Pillow's own default: a quarter of a gigabyte at three bytes a pixel."""

_LOADING = threading.Lock()
_NOT_IN_A_SCAN = re.compile(rb"\xff[^\x00\xff\xc4\xda\xdb\xdd\xfe\xd0-\xd8]")
"""The first marker in or after a JPEG's scans that does not belong there: its end, or damage that libjpeg refuses."""
_END_OF_JPEG = 0xD9


@dataclass(frozen=True, slots=True)
class JpegFile:
    """A JPEG of which every decoder makes the same picture.

    Attributes:
        orientation: of EXIF, 1 to 8.
        length: bytes of the file.
        read: returns the whole file; None if its end is missing or a marker is wrong, which decoders treat differently.

    """

    orientation: int
    length: int
    read: Callable[[], bytes | None]


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """A picture whose header was read and is within the limits.

    Attributes:
        width, height: px, before it is turned upright.
        memory: upper bound of the bytes that `load` takes at its peak.
        kept: upper bound of the bytes that stay in memory after decoding.
        load: decodes it to an upright RGB image; call it once. With `least`, a JPEG is decoded at a half, a quarter or an
            eighth of its edges, if both keep at least `least` px.
        jpeg: the encoded file, for another decoder; None for what only `load` decodes rightly.

    """

    width: int
    height: int
    memory: int
    kept: int
    load: Callable[..., Image.Image]
    jpeg: JpegFile | None = None


def decode(source: Source, *, max_pixels: int = MAX_PIXELS, formats: Iterable[str] = FORMATS) -> Image.Image:
    """Return the picture in `source`, upright, in mode RGB.

    The format is recognised by content, not by name. Of an animation, the first frame is decoded. EXIF orientation is
    applied, transparent parts become white, 16-bit grey is scaled to 8 bits, and palettes, grey and CMYK become RGB.

    Args:
        source: path, encoded bytes, Pillow image, or uint8 array (H, W, 3) or (H, W).
        max_pixels: larger images are refused by their header, before any pixel is decoded.
        formats: allowed names of `FORMATS`.

    Raises:
        ImageFormatError: the format is unknown or not among `formats`.
        ImageSizeError: the image has more than `max_pixels`, or needs too much work for its pixels.
        ImageError: any other failure; the text names the source, what it is and what was expected.
        OptionError: `formats` has an unknown name.

    """
    with open_image(source, max_pixels=max_pixels, formats=formats) as opened:
        return opened.load()


@contextlib.contextmanager
def open_image(
    source: Source, *, max_pixels: int = MAX_PIXELS, formats: Iterable[str] = FORMATS
) -> Iterator[OpenedImage]:
    """Read the header of `source`, and estimate the cost of decoding it.

    Every error within the context becomes an ImageError that names the source.

    Args:
        source: as in `decode`.
        max_pixels: as in `decode`.
        formats: as in `decode`.

    Raises:
        ImageError, OptionError: as in `decode`.

    """
    allowed = known_formats(formats)
    try:
        with contextlib.ExitStack() as stack:
            yield _open(source, allowed, max_pixels, stack)
    except ImageError as error:
        raise type(error)(f"{describe(source)}: {error}") from error.__cause__
    except MimError:
        raise
    except Exception as error:  # damaged files raise many types, SyntaxError and struct.error among them
        raise ImageError(f"{describe(source)}: cannot be read ({_reason(error)})") from error


def describe(source: object) -> str:
    """Return a few words that identify `source` for a person."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source):,} bytes"
    if isinstance(source, Image.Image):
        return f"Pillow image {source.mode} {source.width}x{source.height}"
    if isinstance(source, np.ndarray):
        return f"array {source.dtype} {source.shape}"
    return f"object of type {type(source).__name__}"


def refuse_single(images: object) -> None:
    """Raise ImageError for a single image: iterating over a str would give letters, over an array rows."""
    single = isinstance(images, str | Path | bytes | bytearray | memoryview | Image.Image)
    if single or (isinstance(images, np.ndarray) and images.ndim in {2, 3}):
        raise ImageError(f"expected a list of images, got one ({describe(images)}); put it in a list: [image]")


def _open(source: object, allowed: tuple[str, ...], max_pixels: int, stack: contextlib.ExitStack) -> OpenedImage:
    if isinstance(source, np.ndarray):
        return _open_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _open_pillow(source, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _open_stream(io.BytesIO(source), allowed, max_pixels)
    if isinstance(source, str | Path):
        return _open_stream(stack.enter_context(open_small(source)), allowed, max_pixels)
    raise ImageError("expected a path, encoded bytes, a Pillow image or a uint8 array (H, W, 3) or (H, W)")


def _open_array(array: np.ndarray, max_pixels: int) -> OpenedImage:
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise ImageError("expected uint8 pixels of shape (H, W, 3) or (H, W), values 0 to 255")
    height, width = array.shape[:2]
    _check_size(width, height, max_pixels)
    memory = array.nbytes + 2 * RGB_BYTES * width * height
    return OpenedImage(width, height, memory, memory, partial(_load_array, array))


def _load_array(array: np.ndarray, least: int | None = None) -> Image.Image:  # noqa: ARG001 - only a JPEG can
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _open_pillow(image: Image.Image, max_pixels: int) -> OpenedImage:
    _check_size(image.width, image.height, max_pixels)
    pixels = image.width * image.height
    # The caller opened it, so its container is not checked. It may have to be loaded first.
    memory = converted_memory(image) + 4 * RGB_BYTES * pixels
    return OpenedImage(image.width, image.height, memory, memory, partial(_load_copy, image))


def _load_copy(image: Image.Image, least: int | None = None) -> Image.Image:  # noqa: ARG001 - its owner opened it
    # A Pillow image may be lazy, and a list may hold it twice: two threads must not load it at once.
    with _LOADING:
        own = image.copy()
        orientation = orientation_of(image)
    return turned_upright(to_rgb(own), orientation)


def _open_stream(stream: IO[bytes], allowed: tuple[str, ...], max_pixels: int) -> OpenedImage:
    name = recognise(stream, allowed)
    container = read_container(name, stream)
    container.length = length_of(stream)
    # Before Pillow opens it, since opening already handles every piece of the container.
    if container.size is not None:
        _check_size(*container.size, max_pixels)
    check_seconds(container.seconds, container.area or math.prod(container.size or (max_pixels,)))
    with_pillow = partial(_open_with_pillow, stream, name, container, max_pixels)
    if container.size and is_plain_jpeg(container, math.prod(container.size)):
        return _open_jpeg(stream, container, container.size, with_pillow)
    return with_pillow()


def _open_jpeg(
    stream: IO[bytes], container: Container, size: tuple[int, int], with_pillow: Callable[[], OpenedImage]
) -> OpenedImage:
    orientation = turbo.orientation_in(container.metadata)
    jpeg = JpegFile(orientation, container.length, partial(_whole_jpeg, stream, container.scan))
    file = jpeg if container.ycbcr else None
    if not turbo.library():
        return replace(with_pillow(), jpeg=file)
    cost = cost_of_jpeg(container, math.prod(size), turned=orientation in UPRIGHT)

    def load(least: int | None = None) -> Image.Image:
        stream.seek(0)
        picture = turbo.decode_jpeg(stream.read(), size, _fraction(size, least))
        return with_pillow().load(least) if picture is None else turned_upright(picture, orientation)

    return OpenedImage(*size, cost.memory, cost.kept, load, file)


def _whole_jpeg(stream: IO[bytes], scan: int) -> bytes | None:
    stream.seek(0)
    data = stream.read()
    last = _NOT_IN_A_SCAN.search(data, scan)
    return data if last and last[0][1] == _END_OF_JPEG else None


def _open_with_pillow(stream: IO[bytes], name: str, container: Container, max_pixels: int) -> OpenedImage:
    stream.seek(0)
    image = open_plugin(name, stream)
    if container.size not in {None, image.size}:
        raise ImageError(f"cannot be read (its header says both {container.size} and {image.size} pixels)")
    _check_size(image.width, image.height, max_pixels)
    if name == "TIFF":
        add_parts(container, image, stream)  # type: ignore[arg-type]
    # Not for a PNG, which would load its pixels to find its EXIF block.
    turned = container.turns or (name != "PNG" and orientation_of(image) in UPRIGHT)
    cost = cost_of(image, container, turned=turned)
    check_seconds(cost.seconds, image.width * image.height)
    return OpenedImage(image.width, image.height, cost.memory, cost.kept, partial(_load_file, image))


def _fraction(size: tuple[int, int], least: int | None) -> int:
    """Return the largest divisor of 8, 4 and 2 that leaves at least `least` px of both edges; else 1."""
    return 1 if least is None else next((part for part in (8, 4, 2) if min(size) // part >= least), 1)


def _load_file(image: ImageFile.ImageFile, least: int | None = None) -> Image.Image:
    if image.format == "JPEG" and (part := _fraction(image.size, least)) > 1:
        image.draft(None, (image.width // part, image.height // part))
    image.load()
    # After loading: Pillow turns a TIFF upright while loading and removes its tag.
    orientation = orientation_of(image)
    picture = to_rgb(image)
    if picture is not image:
        image.close()
    return turned_upright(picture, orientation)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"has no pixels: {width}x{height}")
    if width * height > max_pixels:
        raise ImageSizeError(f"is {width}x{height}, {width * height:,} pixels; at most {max_pixels:,} are decoded")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0].strip() or type(error).__name__
