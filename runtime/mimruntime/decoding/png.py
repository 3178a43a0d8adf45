"""PNG: count the chunks, and bound texts and profiles that inflate a thousandfold."""

from __future__ import annotations

import struct
from typing import IO

from mimruntime.decoding.container import Container, check_pieces, length_of

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_INFLATED = {b"iCCP", b"zTXt", b"iTXt"}
_ORIENTED = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
_LEAST_DATA = 64
"""Average size in bytes of a chunk of pixels that counts as normal; libpng writes 8,192."""

_PER_CHUNK = 4e-6
_PER_INFLATED_CHUNK = 3e-3  # Pillow inflates at most a megabyte
_PER_RAW_BYTE = 6e-9
_PER_CODED_BYTE = 5e-9


def read_png(stream: IO[bytes]) -> Container:
    """Read the chunks of a whole file, from its start.

    Raises:
        ImageSizeError: there are too many chunks.

    """
    stream.seek(8)
    result, others, pixels, total = Container(), 0, 0, length_of(stream)
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        result.seconds += _PER_CHUNK
        pixels, others = (pixels + 1, others) if kind == b"IDAT" else (pixels, others + 1)
        check_pieces(others + max(0, pixels - total // _LEAST_DATA), "chunks")
        if kind == b"IHDR":
            _add_header(result, stream.read(13))
            length -= 13
        elif kind == b"IEND":
            break
        result.turns |= kind in _ORIENTED
        result.seconds += _PER_INFLATED_CHUNK if kind in _INFLATED else 0
        stream.seek(length + 4, 1)
    result.seconds += total * _PER_CODED_BYTE
    return result


def _add_header(result: Container, header: bytes) -> None:
    """Add the size, and the cost of all bytes to which the rows inflate."""
    if len(header) == 13:
        width, height, bits, colours = struct.unpack(">IIBB", header[:10])
        result.size = (width, height)
        result.seconds += height * (1 + width * bits * _CHANNELS.get(colours, 4) / 8) * _PER_RAW_BYTE
