"""The facts about decoding work that the container of an encoded image shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO

from mimruntime.errors import ImageSizeError

MAX_PIECES = 20_000
"""Largest number of segments, chunks or blocks of metadata; Pillow handles each in Python. 16 MB in a JPEG are 256."""


LOSSLESS_BYTES = 4
"""Coded bytes per px that are normal in AVIF, HEIC and JPEG 2000: lossless noise has as many."""


@dataclass(slots=True, kw_only=True)
class Container:
    """The facts that were read; every estimate is an upper bound.

    Attributes:
        seconds: CPU seconds for the container and for all work that does not depend on the picture's mode.
        length: bytes of the file.
        buffer: bytes in memory beside the pixels during decoding.
        size: width and height in px, as the decoder will read them; None if only Pillow reads them.
        area: px by the container, if the decoder may still rotate or crop the picture.
        turns: whether there may be an EXIF orientation that is known only after decoding.
        components: 1 or 3 for a JPEG that every JPEG decoder can read; None for other files.
        ycbcr: whether every decoder takes a JPEG's components for grey or YCbCr, and not for RGB.
        scan: position of the coded data of a JPEG's first scan.
        metadata: contents of a JPEG's APP1 segments.

    """

    seconds: float = 0.0
    length: int = 0
    buffer: int = 0
    size: tuple[int, int] | None = None
    area: int | None = None
    turns: bool = False
    components: int | None = None
    ycbcr: bool = False
    scan: int = 0
    metadata: list[bytes] = field(default_factory=list)


def check_pieces(count: int, kind: str) -> None:
    """Refuse a file of more than `MAX_PIECES`; `kind` names them."""
    if count > MAX_PIECES:
        raise ImageSizeError(f"has more than {MAX_PIECES:,} {kind}; no camera or program writes so many")


def length_of(stream: IO[bytes]) -> int:
    """Return the length of a whole stream in bytes; its position does not change."""
    place = stream.tell()
    length = stream.seek(0, 2)
    stream.seek(place)
    return length
