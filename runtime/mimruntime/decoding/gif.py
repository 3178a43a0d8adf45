"""GIF: comments and extensions before the first frame, block by block."""

from __future__ import annotations

from typing import IO

from mimruntime.decoding.container import Container, check_pieces, length_of

_PER_BLOCK = 2e-6
_PER_CODED_BYTE = 1e-8


def read_gif(stream: IO[bytes]) -> Container:
    """Read the blocks before the first frame, from the start of the file.

    Raises:
        ImageSizeError: there are too many blocks.

    """
    header = stream.read(13)
    if len(header) == 13 and header[10] & 0x80:
        stream.seek(3 << ((header[10] & 7) + 1), 1)
    blocks = 0
    while (kind := stream.read(1)) not in {b"", b",", b";"}:
        blocks += 1
        if kind == b"!":
            stream.seek(1, 1)
            while (length := stream.read(1)) not in {b"", b"\0"}:
                blocks += 1
                check_pieces(blocks, "blocks")
                stream.seek(length[0], 1)
        check_pieces(blocks, "blocks")
    return Container(seconds=blocks * _PER_BLOCK + length_of(stream) * _PER_CODED_BYTE)
