"""What the container of an encoded image tells about the work inside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO

from mimruntime.errors import ImageSizeError

MAX_PIECES = 20_000
"""Segments, chunks or blocks beside the picture; Pillow handles each in Python. 16 MB of metadata in a JPEG are 256."""


LOSSLESS_BYTES = 4
"""Coded bytes a px that are not held against AVIF, HEIC and JPEG 2000: noise without loss has as many."""


@dataclass(slots=True, kw_only=True)
class Container:
    """What was read; every figure is estimated from above.

    Attributes:
        seconds: of one CPU, for the container and for all that does not follow from the mode of the picture.
        length: bytes of the file.
        buffer: bytes that are held beside the pixels while they are decoded.
        size: width and height, px, as the decoder will read them; None where Pillow alone reads them.
        area: px that the container states, where the decoder may still turn or cut them.
        turns: whether there may be an EXIF orientation that only shows once the picture is decoded.
        components: of a JPEG that any decoder of JPEG reads, 1 or 3; None of every other file.
        metadata: bodies of a JPEG's segments APP1.

    """

    seconds: float = 0.0
    length: int = 0
    buffer: int = 0
    size: tuple[int, int] | None = None
    area: int | None = None
    turns: bool = False
    components: int | None = None
    metadata: list[bytes] = field(default_factory=list)


def check_pieces(count: int, kind: str) -> None:
    """Refuse a file of more than `MAX_PIECES`; `kind` names them."""
    if count > MAX_PIECES:
        raise ImageSizeError(f"has more than {MAX_PIECES:,} {kind}; no camera or program writes so many")


def length_of(stream: IO[bytes]) -> int:
    """Return the bytes of a whole stream; it stands where it stood."""
    place = stream.tell()
    length = stream.seek(0, 2)
    stream.seek(place)
    return length
