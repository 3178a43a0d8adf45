"""Upper bounds of the CPU time and memory of decoding one image, from its header."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from mimruntime.decoding.container import Container
from mimruntime.errors import ImageSizeError

ALPHA_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}
RGB_BYTES = 4
"""Bytes of a pixel in Pillow's memory, in any mode with more than one channel."""
STRIP = 1 << 21
"""Pixels that are converted at a time."""

_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_STRIP_BYTES, _STRIP_BYTES_OF_INTEGERS = 24, 8
_SLACK = 2_000_000
_BESIDE = {"WEBP": 16, "AVIF": 8, "HEIF": 6, "JPEG2000": 0}
"""Bytes per pixel that a decoder holds beside the picture, without those that the container shows."""
_BESIDE_KEPT = {"WEBP": 8, "AVIF": 0, "HEIF": 0, "JPEG2000": 0}
"""The part of these bytes that it holds until the picture is released."""
_UNTIL_LET_GO = {"AVIF", "HEIF"}
"""Formats whose decoder, with the buffers that the container shows, stays in memory until then."""

_BASE_SECONDS = 0.5
_SECONDS_PER_PIXEL = 8e-8
_WEBP, _WEBP_ALPHA, _PLAIN, _CONVERTED = 1.5e-8, 2.5e-8, 8e-9, 1.2e-8
_RLE_PIXEL, _RLE_BYTE = 1.6e-7, 2.5e-7


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of decoding.

    Attributes:
        seconds: CPU seconds.
        memory: bytes at the peak.
        kept: bytes that stay in memory after decoding.

    """

    seconds: float
    memory: int
    kept: int


def check_seconds(seconds: float, pixels: int) -> None:
    """Refuse an image whose cost is too high for its pixels: over half a second plus a second per 12.5 megapixels.

    A progressive JPEG of ten scans without subsampling, or a PNG of four 16-bit channels, passes at any size.

    Raises:
        ImageSizeError: the cost is over this limit.

    """
    if seconds > (most := _most_seconds(pixels)):
        raise ImageSizeError(
            f"would take about {seconds:.1f} s to decode, expected at most {most:.1f} s for {pixels:,} pixels (too many"
            " scans, chunks or bytes of metadata); save it again with another program"
        )


def is_plain_jpeg(container: Container, pixels: int) -> bool:
    """Return whether a JPEG may be read whole and decoded, and decoded again if the first decoder fails.

    Both attempts together must be within the limit of one image, and the file must not be much larger than its picture.
    """
    fits = container.length <= RGB_BYTES * pixels + _SLACK and 2 * container.seconds <= _most_seconds(pixels)
    return container.components is not None and fits


def _most_seconds(pixels: int) -> float:
    return _BASE_SECONDS + pixels * _SECONDS_PER_PIXEL


def cost_of_jpeg(container: Container, pixels: int, *, turned: bool) -> Cost:
    """Return the cost, with either decoder, of a JPEG of one or three components that is first read whole.

    Args:
        container: facts about the file.
        pixels: number of pixels of the picture.
        turned: whether it has to be turned upright.

    """
    picture = RGB_BYTES * pixels
    kept = picture + container.length + _SLACK
    made = 0 if container.components == 3 else pixels  # Pillow converts grey to RGB
    return Cost(container.seconds, kept + max(container.buffer, made, picture if turned else 0), kept)


def cost_of(image: Image.Image, container: Container, *, turned: bool) -> Cost:
    """Return the cost of decoding an opened image to an upright RGB image.

    Args:
        image: an image whose header was read, but not its pixels.
        container: facts about the file, read without Pillow.
        turned: whether it has to be turned upright.

    """
    pixels = image.width * image.height
    stored = pixels * _STORED_BYTES.get(image.mode, RGB_BYTES)
    buffer, kept, seconds = container.buffer, 0, container.seconds
    if image.format in _BESIDE:
        buffer += _BESIDE[image.format] * pixels
        kept = _BESIDE_KEPT[image.format] * pixels + (container.buffer if image.format in _UNTIL_LET_GO else 0)
    if image.format == "WEBP":
        seconds += pixels * (_WEBP if image.mode == "RGB" else _WEBP_ALPHA)
    elif image.format == "BMP" and image.info.get("compression") in {1, 2}:
        buffer += 2 * pixels
        seconds += pixels * _RLE_PIXEL + container.length * _RLE_BYTE
    elif image.format not in {"JPEG", "PNG", "TIFF", "AVIF", "HEIF", "JPEG2000"}:
        seconds += pixels * _PLAIN
    if needs_conversion(image):
        seconds += pixels * _CONVERTED
    loading = buffer + stored * (2 if turned and image.format == "TIFF" else 1)
    kept += RGB_BYTES * pixels + _SLACK
    turning = kept + RGB_BYTES * pixels if turned else kept
    converting = kept - RGB_BYTES * pixels + converted_memory(image)
    return Cost(seconds, max(loading + _SLACK, converting, turning), kept)


def needs_conversion(image: Image.Image) -> bool:
    """Return whether an image has another mode than opaque RGB."""
    return image.mode != "RGB" or "transparency" in image.info


def converted_memory(image: Image.Image) -> int:
    """Return the bytes of an image and of all intermediate results of its conversion to RGB."""
    pixels = image.width * image.height
    stored = pixels * _STORED_BYTES.get(image.mode, RGB_BYTES)
    if not needs_conversion(image):
        return stored
    memory = stored + RGB_BYTES * pixels
    if image.mode.startswith("I"):
        memory += stored + pixels + _STRIP_BYTES_OF_INTEGERS * min(pixels, STRIP)
    elif image.mode in ALPHA_MODES or "transparency" in image.info:
        memory += _STRIP_BYTES * min(pixels, STRIP)
    return memory
