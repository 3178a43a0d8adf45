"""AVIF and HEIC: a picture may consist of many, may be coded larger than declared, or may be coded many times."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

from mimruntime.decoding.av1 import read_units
from mimruntime.decoding.boxes import Item, read_items
from mimruntime.decoding.container import LOSSLESS_BYTES, Container, check_pieces, length_of
from mimruntime.errors import ImageError

_CODED_AVIF, _CODED_HEIC = b"av01", b"hvc1"
_PUT_TOGETHER = {b"grid", b"iovl", b"iden", b"tmap"}
_LEAST_HEIC_AREA = 65_536
"""Area in px that libheif accepts for a picture that declares a smaller one."""
_PARAMETER_SETS = range(32, 35)

_PLANES = 3
"""Bytes per coded px of the decoder's own buffers: 8 bits without chroma subsampling, 10 bits with it."""
_PER_AVIF_PIXEL, _PER_HEIC_PIXEL = 1.5e-8, 5e-8
_PER_PART = 1e-4
_PER_AVIF_BYTE, _PER_HEIC_BYTE = 7e-8, 5e-8


def read_avif(stream: IO[bytes]) -> Container:
    """Read the items of a whole file, and the headers of their streams.

    Raises:
        ImageError: there is no list of items, or an item contains itself.
        ImageSizeError: there are too many items or units.

    """

    def coded(item: Item) -> int:
        area, frames = read_units(_data(stream, item))
        return max(area, item.area) * max(1, frames)

    return _container(stream, _CODED_AVIF, coded, _PER_AVIF_PIXEL, _PER_AVIF_BYTE)


def read_heic(stream: IO[bytes]) -> Container:
    """Read the items of a whole file; libheif checks that a stream has the size that its item declares.

    Raises:
        ImageError: as in `read_avif`, or a stream may have another size than its item declares.
        ImageSizeError: there are too many items or slices.

    """

    def coded(item: Item) -> int:
        return max(item.area, _LEAST_HEIC_AREA) * _count_pictures(_data(stream, item))

    return _container(stream, _CODED_HEIC, coded, _PER_HEIC_PIXEL, _PER_HEIC_BYTE)


def _container(
    stream: IO[bytes], kind: bytes, coded: Callable[[Item], int], per_pixel: float, per_byte: float
) -> Container:
    items = read_items(stream)
    taken = {part for item in items.values() for part in item.parts}
    known: dict[int, tuple[int, int]] = {}
    costs = [_cost(number, items, kind, coded, known) for number in items if number not in taken]
    area, parts = sum(pixels for pixels, _ in costs), sum(count for _, count in costs)
    if not area:
        raise ImageError("cannot be read (it lists no picture, or one that is a part of itself)")
    largest = max(item.area for item in items.values())
    total = length_of(stream)
    excess = max(0, total - LOSSLESS_BYTES * max(largest, 1))
    seconds = area * per_pixel + parts * _PER_PART + excess * per_byte
    return Container(seconds=seconds, buffer=_PLANES * area + total, area=largest)


def _cost(
    number: int,
    items: dict[int, Item],
    kind: bytes,
    coded: Callable[[Item], int],
    known: dict[int, tuple[int, int]],
) -> tuple[int, int]:
    """Return the px that are decoded for an item and the number of items, both counted once per use."""
    if number not in known:
        item = items.get(number, Item())
        known[number] = (0, 1)  # for an item that contains itself
        if item.kind == kind:
            known[number] = (coded(item), 1)
        elif item.kind in _PUT_TOGETHER:
            parts = [_cost(part, items, kind, coded, known) for part in item.parts]
            known[number] = (sum(area for area, _ in parts), 1 + sum(count for _, count in parts))
        elif item.area:
            known[number] = (item.area, 1)
    return known[number]


def _data(stream: IO[bytes], item: Item) -> bytes:
    pieces = []
    for offset, length in item.extents:
        stream.seek(offset)
        pieces.append(stream.read(length))
    return b"".join(pieces)


def _count_pictures(data: bytes) -> int:
    """Return the number of pictures, at least one, in a stream of length-prefixed NAL units."""
    place, count, pictures = 0, 0, 0
    while place + 7 <= len(data):
        count += 1
        check_pieces(count, "units")
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4] >> 1 & 0x3F
        if kind in _PARAMETER_SETS:
            raise ImageError("cannot be read (its stream may state another size than its header)")
        pictures += kind < 32 and data[place + 6] >> 7
        place += 4 + length
    return max(1, pictures)
