"""The items of an AVIF or HEIC file: the coding, the declared size, and the position of the data of each."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from mimruntime.decoding.container import check_pieces, length_of
from mimruntime.errors import ImageError, ImageSizeError

_MOST_META = 16_000_000
"""Largest size in bytes of the box that lists the items; a phone's photograph of 48 tiles needs ten thousand."""


@dataclass(slots=True)
class Item:
    """One item: a coded picture, a picture composed of others, or metadata.

    Attributes:
        kind: four letters, such as `av01`, `hvc1`, `grid`.
        area: area in px by its `ispe` property; 0 without one.
        parts: items from which it is derived, one entry per use.
        extents: offset and length in bytes of each piece of its data.

    """

    kind: bytes = b""
    area: int = 0
    parts: list[int] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)


def read_items(stream: IO[bytes]) -> dict[int, Item]:
    """Return the items of a whole file, read from its start, by item number.

    Raises:
        ImageError: the file has no list of items.
        ImageSizeError: there are more items, references or bytes than any camera writes, or the data overlap.

    """
    items: dict[int, Item] = {}
    start, meta = _find_meta(stream)
    children = dict(_boxes(meta, 4, len(meta)))
    for name, read in {b"iinf": _read_kinds, b"iref": _read_parts, b"iprp": _read_areas}.items():
        if name in children:
            read(meta, *children[name], items)
    if b"iloc" in children:
        inside = start + children[b"idat"][0] if b"idat" in children else 0
        _read_extents(meta, children[b"iloc"][0], items, inside)
    if sum(length for item in items.values() for _, length in item.extents) > length_of(stream):
        raise ImageSizeError("has items of more bytes than the file; they overlap")
    return items


def _find_meta(stream: IO[bytes]) -> tuple[int, bytes]:
    """Return the offset and the content of the `meta` box."""
    total, place = length_of(stream), 0
    for count in range(total):
        check_pieces(count, "boxes")
        stream.seek(place)
        head = stream.read(16)
        if len(head) < 8:
            break
        size, kind, width = *struct.unpack(">I4s", head[:8]), 8
        if size == 1:
            size, width = struct.unpack(">Q", head[8:16])[0], 16
        end = place + size if size else total
        if end < place + width:
            break
        if kind == b"meta":
            if end - place > _MOST_META:
                raise ImageSizeError(f"has {end - place:,} bytes of lists; at most {_MOST_META:,} are read")
            stream.seek(place + width)
            return place + width, stream.read(end - place - width)
        place = end
    raise ImageError("cannot be read (it lists no picture)")


def _boxes(data: bytes, place: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield the name of each box, and the start and end of its content."""
    count = 0
    while place + 8 <= end:
        count += 1
        check_pieces(count, "boxes")
        size, kind = struct.unpack_from(">I4s", data, place)
        width = 8
        if size == 1:
            size, width = struct.unpack_from(">Q", data, place + 8)[0], 16
        stop = place + size if size else end
        if not place + width <= stop <= end:
            raise ImageError(f"cannot be read (a box of {size:,} bytes in one of {end - place:,})")
        yield kind, (place + width, stop)
        place = stop


def _read_kinds(data: bytes, place: int, end: int, items: dict[int, Item]) -> None:
    count_width = 2 if data[place] == 0 else 4
    for _, (start, _) in _boxes(data, place + 4 + count_width, end):
        wide = data[start] >= 3
        number = _number(data, start + 4, 4 if wide else 2)
        kind = start + (10 if wide else 8)
        items[number] = Item(data[kind : kind + 4])


def _read_parts(data: bytes, place: int, end: int, items: dict[int, Item]) -> None:
    width, total = (2 if data[place] == 0 else 4), 0
    for kind, (start, _) in _boxes(data, place + 4, end):
        count = _number(data, start + width, 2)
        total += count
        check_pieces(total, "references")
        owner = items.get(_number(data, start, width))
        if kind == b"dimg" and owner is not None:
            first = start + width + 2
            owner.parts += [_number(data, first + index * width, width) for index in range(count)]


def _read_areas(data: bytes, place: int, end: int, items: dict[int, Item]) -> None:
    areas: list[int] = []
    for kind, (start, stop) in _boxes(data, place, end):
        if kind == b"ipco":
            areas = [
                _number(data, inner + 4, 4) * _number(data, inner + 8, 4) if name == b"ispe" else 0
                for name, (inner, _) in _boxes(data, start, stop)
            ]
        elif kind == b"ipma":
            _associate(data, start, areas, items)


def _associate(data: bytes, start: int, areas: list[int], items: dict[int, Item]) -> None:
    number_width, entry_width = (2 if data[start] == 0 else 4), 1 + (data[start + 3] & 1)
    place = start + 8
    for count in range(_number(data, start + 4, 4)):
        check_pieces(count, "items")
        item = items.get(_number(data, place, number_width), Item())
        entries = data[place + number_width]
        place += number_width + 1
        for _ in range(entries):
            index = _number(data, place, entry_width) & (0x7FFF if entry_width == 2 else 0x7F)
            if 0 < index <= len(areas):
                item.area = max(item.area, areas[index - 1])
            place += entry_width


def _read_extents(data: bytes, place: int, items: dict[int, Item], inside: int) -> None:
    """Read the positions of the data; `inside` is the start of data that are stored in the list itself."""
    version = data[place]
    offset, length = divmod(data[place + 4], 16)
    base, index = divmod(data[place + 5], 16)
    wide = 4 if version == 2 else 2
    count, place, total = _number(data, place + 6, wide), place + 6 + wide, 0
    for _number_of_item in range(count):
        item = items.get(_number(data, place, wide), Item())
        place += wide
        local = version > 0 and _number(data, place, 2) & 15 == 1
        place += 4 if version > 0 else 2
        begin = _number(data, place, base) + (inside if local else 0)
        extents = _number(data, place + base, 2)
        place += base + 2
        total += 1 + extents
        check_pieces(total, "pieces of items")
        for _ in range(extents):
            place += index if version > 0 else 0
            item.extents.append((begin + _number(data, place, offset), _number(data, place + offset, length)))
            place += offset + length


def _number(data: bytes, place: int, width: int) -> int:
    if place + width > len(data):
        raise ImageError("cannot be read (its list of items ends early)")
    return int.from_bytes(data[place : place + width], "big")
