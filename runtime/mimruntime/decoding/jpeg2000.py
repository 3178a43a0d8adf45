"""JPEG 2000: count tiles, layers, precincts and code blocks, which a decoder creates before it reads any data."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from mimruntime.decoding.container import LOSSLESS_BYTES, Container, check_pieces, length_of
from mimruntime.errors import ImageError, ImageSizeError

_START, _SIZE, _STYLE, _STYLE_OF_ONE, _PART, _DATA, _END = 0xFF4F, 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_MOST_COMPONENTS = 4
_PLAIN_PRECINCT = 15
"""Exponent: 32,768 px."""

_PER_SAMPLE = 1.3e-8
_PER_CODED_BYTE = 12e-8
_PER_TILE = 1e-4
_PER_PACKET = 1.2e-6
_PER_BLOCK = 4e-7
_BYTES_PER_SAMPLE, _BYTES_PER_BLOCK, _BYTES_PER_PRECINCT = 8, 200, 200


@dataclass(frozen=True, slots=True)
class _Grid:
    """The size of the picture and of a tile in px, and the number of components."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    components: int

    @property
    def tiles(self) -> int:
        return math.ceil(self.width / self.tile_width) * math.ceil(self.height / self.tile_height)


@dataclass(frozen=True, slots=True)
class _Style:
    """The division of tiles: `block` and `precinct` are the smallest areas that occur, in px."""

    layers: int = 1
    levels: int = 0
    block: int = 4096
    precinct: int = 1 << 2 * _PLAIN_PRECINCT


def read_jpeg2000(stream: IO[bytes]) -> Container:
    """Read the markers of a whole file: its size, and the coding styles of the picture and of its tiles.

    Raises:
        ImageError: there is no codestream, or it has no size.
        ImageSizeError: there are too many markers or components.

    """
    stream.seek(_codestream(stream))
    grid, style = None, _Style()
    for marker, body in _markers(stream):
        if marker == _SIZE and grid is None:
            grid = _read_grid(body)
        elif marker in {_STYLE, _STYLE_OF_ONE}:
            style = _worse(style, _read_style(body, of_one=marker == _STYLE_OF_ONE))
    if grid is None:
        raise ImageError("cannot be read (a JPEG 2000 without a picture)")
    return _container(grid, style, length_of(stream))


def _container(grid: _Grid, style: _Style, length: int) -> Container:
    samples = grid.width * grid.height * grid.components
    resolutions = style.levels + 1
    per_tile = min(grid.width, grid.tile_width) * min(grid.height, grid.tile_height)
    # Every resolution of every tile has at least one precinct; all resolutions have at most twice those of the finest.
    precincts = grid.components * grid.tiles * (resolutions + 2 * math.ceil(per_tile / style.precinct))
    blocks = grid.components * grid.tiles * (3 * resolutions + 2 * math.ceil(per_tile / style.block))
    excess = max(0, length - LOSSLESS_BYTES * grid.width * grid.height)
    return Container(
        seconds=samples * _PER_SAMPLE
        + grid.tiles * _PER_TILE
        + precincts * style.layers * _PER_PACKET
        + blocks * _PER_BLOCK
        + excess * _PER_CODED_BYTE,
        buffer=grid.components * per_tile * _BYTES_PER_SAMPLE
        + (blocks * _BYTES_PER_BLOCK + precincts * _BYTES_PER_PRECINCT) // grid.tiles
        + length,
        size=(grid.width, grid.height),
    )


def _codestream(stream: IO[bytes]) -> int:
    """Return the offset of the codestream, in a bare codestream or in the boxes of a JP2 file."""
    total, place = length_of(stream), 0
    for count in range(total):
        check_pieces(count, "boxes")
        stream.seek(place)
        head = stream.read(16)
        if head[:2] == b"\xff\x4f":
            return place
        if len(head) < 8:
            break
        size, kind, width = *struct.unpack(">I4s", head[:8]), 8
        if size == 1 and len(head) == 16:
            size, width = struct.unpack(">Q", head[8:])[0], 16
        if kind == b"jp2c":
            return place + width
        if size < width:
            break
        place += size
    raise ImageError("cannot be read (a JPEG 2000 without a codestream)")


def _markers(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the markers with their contents, and skip the data of all tile parts."""
    count, part, part_length = 0, 0, 0
    while len(head := stream.read(2)) == 2:
        count += 1
        check_pieces(count, "markers")
        place, marker = stream.tell() - 2, struct.unpack(">H", head)[0]
        if marker == _START:
            continue
        if marker == _END:
            return
        if marker == _DATA:
            if not part_length:  # it extends to the end of the file
                return
            stream.seek(part + part_length)
            continue
        length = int.from_bytes(stream.read(2), "big")
        body = stream.read(max(0, length - 2))
        if marker == _PART and len(body) >= 6:
            part, part_length = place, int.from_bytes(body[2:6], "big")
            if 0 < part_length < 14:
                raise ImageError(f"cannot be read (a part of a tile of {part_length} bytes)")
        yield marker, body


def _read_grid(body: bytes) -> _Grid:
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", body, 2)
    components = struct.unpack_from(">H", body, 34)[0]
    if components > _MOST_COMPONENTS:
        raise ImageSizeError(f"has {components:,} components; at most {_MOST_COMPONENTS} are read")
    if right <= left or bottom <= top or not tile_width or not tile_height or not components:
        raise ImageError(f"has no pixels: {right - left}x{bottom - top}")
    return _Grid(right - left, bottom - top, tile_width, tile_height, components)


def _read_style(body: bytes, *, of_one: bool) -> _Style:
    """Read COD, or COC, which starts with the component and has no layers."""
    own = bool(body[1 if of_one else 0] & 1)
    layers = 1 if of_one else struct.unpack_from(">H", body, 2)[0]
    levels, block_width, block_height = struct.unpack_from(">BBB", body, 2 if of_one else 5)
    sizes = body[7 if of_one else 10 :] if own else b""
    if levels > 32:
        raise ImageError(f"cannot be read (it has {levels} levels; JPEG 2000 has at most 32)")
    precinct = min((1 << (size & 15) + (size >> 4) for size in sizes), default=1 << 2 * _PLAIN_PRECINCT)
    return _Style(layers, levels, 1 << (block_width & 15) + (block_height & 15) + 4, precinct)


def _worse(one: _Style, other: _Style) -> _Style:
    return _Style(
        max(one.layers, other.layers),
        max(one.levels, other.levels),
        min(one.block, other.block, one.precinct, other.precinct),
        min(one.precinct, other.precinct),
    )
