"""WebP: the animation decoder keeps two canvases and the whole file in memory beside the picture."""

from __future__ import annotations

import struct
from typing import IO

from mimruntime.decoding.container import Container, check_pieces, length_of

_PER_CHUNK = 4e-6
_PER_CODED_BYTE = 2e-8


def read_webp(stream: IO[bytes]) -> Container:
    """Read the chunks of a whole file, from its start.

    Raises:
        ImageSizeError: there are too many chunks.

    """
    total, count = length_of(stream), 0
    stream.seek(12)
    while len(head := stream.read(8)) == 8:
        count += 1
        check_pieces(count, "chunks")
        length = struct.unpack("<I", head[4:])[0]
        stream.seek(length + length % 2, 1)
    return Container(seconds=count * _PER_CHUNK + total * _PER_CODED_BYTE, buffer=2 * total)
