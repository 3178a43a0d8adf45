"""TIFF: count strips and tiles, each of which may be a JPEG of many scans, and check where tags point."""

from __future__ import annotations

import struct
from typing import IO, TYPE_CHECKING, Any

from mimruntime.decoding.container import Container, check_pieces, length_of
from mimruntime.errors import ImageSizeError

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

_STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES = 273, 279, 324, 325
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ROWS, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 259, 278, 322, 323
_JPEG = {6, 7}
_MAX_TAGS = 4096

_PER_TAG = 1e-5
_PER_PART = 4e-5
_PER_COPIED_BYTE = 1e-9
_PER_CODED_BYTE = 3e-9
_PER_RAW_BYTE = 5e-9
_PER_SCANNED_SAMPLE = 0.7e-9


def read_tiff(stream: IO[bytes]) -> Container:
    """Count the tags, strips and tiles of the first picture before Pillow makes objects of them.

    Raises:
        ImageSizeError: there are too many.

    """
    head = stream.read(16)
    if len(head) < 16:
        return Container()
    order, big = "<" if head[:2] == b"II" else ">", head[2:4] in {b"+\0", b"\0+"}
    stream.seek(struct.unpack(order + "Q", head[8:16])[0] if big else struct.unpack(order + "I", head[4:8])[0])
    width, count_format, entry = (8, "Q", "HHQ8x") if big else (2, "H", "HHI4x")
    counted = stream.read(width)
    tags = struct.unpack(order + count_format, counted)[0] if len(counted) == width else 0
    if tags > _MAX_TAGS:
        raise ImageSizeError(f"has {tags:,} tags; at most {_MAX_TAGS:,} are read")
    table = stream.read(tags * struct.calcsize(order + entry))
    table = table[: len(table) // struct.calcsize(order + entry) * struct.calcsize(order + entry)]
    parts = sum(
        count
        for tag, _, count in struct.iter_unpack(order + entry, table)
        if tag in {_STRIP_OFFSETS, _TILE_OFFSETS, _STRIP_SIZES, _TILE_SIZES}
    )
    check_pieces(parts // 4, "strips or tiles")
    return Container(seconds=tags * _PER_TAG + parts / 2 * _PER_PART)


def add_parts(result: Container, image: TiffImageFile, stream: IO[bytes]) -> None:
    """Add the cost of the strips or tiles of an opened picture: their samples, and all scans of those in JPEG."""
    tags = image.tag_v2
    width, height = _number(tags, _WIDTH, 1), _number(tags, _HEIGHT, 1)
    across = _number(tags, _TILE_WIDTH, width)
    down = _number(tags, _TILE_HEIGHT, min(height, _number(tags, _ROWS, height)))
    bits = tags.get(_BITS, (1,))
    samples = across * down * len(bits)
    part = samples * max(1, max(bits) // 8)
    offsets = tags.get(_TILE_OFFSETS, tags.get(_STRIP_OFFSETS, ()))
    sizes = tags.get(_TILE_SIZES, tags.get(_STRIP_SIZES, ()))
    compression, raw = tags.get(_COMPRESSION, 1), part * len(offsets)
    result.seconds += raw * _PER_COPIED_BYTE if compression == 1 else raw * _PER_RAW_BYTE + sum(sizes) * _PER_CODED_BYTE
    result.buffer += part if compression != 1 else 0
    if compression in _JPEG:
        scans = _count_scans(stream, offsets, sizes)
        result.buffer += 2 * samples
        result.seconds += samples * scans * _PER_SCANNED_SAMPLE


def _count_scans(stream: IO[bytes], offsets: tuple[int, ...], sizes: tuple[int, ...]) -> int:
    """Return an upper bound of the number of scans in all strips or tiles."""
    if sum(sizes) > length_of(stream):
        raise ImageSizeError("has strips or tiles of more bytes than the file; they overlap")
    place, found = stream.tell(), 0
    for offset, size in zip(offsets, sizes, strict=False):
        stream.seek(offset)
        found += stream.read(size).count(b"\xff\xda")
    stream.seek(place)
    return found


def _number(tags: Any, tag: int, otherwise: int) -> int:
    value = tags.get(tag, otherwise)
    return value if isinstance(value, int) and value > 0 else otherwise
