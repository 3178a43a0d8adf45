"""Generate images that are damaged, declare a wrong size, or need much work to decode."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence

import hostile_images as hostile

_MAGIC = (b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\xff\xff\xff\x7fWEBPVP8 ", b"II*\0")
_OTHER = (b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n", b"%!PS-Adobe", b"PK\3\4" + bytes(40), b"\0")
_SIDES = (0, 1, 3, 255, 4_000, 16_000, 65_535)


def noise(draw: random.Random, most: int) -> bytes:
    """Return up to `most` random bytes, generated from one random number."""
    return random.Random(draw.getrandbits(32)).randbytes(draw.randint(0, most))


def damaged_image(draw: random.Random, photos: Sequence[bytes]) -> tuple[str, bytes]:
    """Return the kind of damage and the encoded image; some are still decodable."""
    kind, make = draw.choice(_DAMAGE)
    return f"image: {kind}", make(draw, photos)


def _cut(draw: random.Random, photos: Sequence[bytes]) -> bytes:
    photo = draw.choice(photos)
    return photo[: draw.randrange(1, len(photo))]


def _flipped(draw: random.Random, photos: Sequence[bytes]) -> bytes:
    photo = bytearray(draw.choice(photos))
    head = min(len(photo), draw.choice([64, 1024, 1 << 20]))  # prefer the headers
    for _ in range(draw.randint(1, 30)):
        photo[draw.randrange(head)] ^= 1 << draw.randrange(8)
    return bytes(photo)


def _spliced(draw: random.Random, photos: Sequence[bytes]) -> bytes:
    first, second = draw.choice(photos), draw.choice(photos)
    return first[: draw.randrange(len(first))] + second[draw.randrange(len(second)) :]


def _resized(draw: random.Random, photos: Sequence[bytes]) -> bytes:
    """Return a photograph whose header declares another size."""
    photo, width, height = draw.choice(photos), draw.choice(_SIDES), draw.choice(_SIDES)
    if photo.startswith(b"\x89PNG"):
        header = struct.pack(">II", width, height) + photo[24:29]
        return photo[:8] + hostile.chunk(b"IHDR", header) + photo[33:]
    if photo.startswith(b"\xff\xd8"):
        frame = next((photo.find(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in photo), 0)
        return photo[: frame + 5] + struct.pack(">HH", height, width) + photo[frame + 9 :]
    at, form = {b"GI": (6, "<HH"), b"BM": (18, "<ii")}.get(photo[:2], (26, "<HH"))
    sides = struct.pack(form, width, height)
    return photo[:at] + sides + photo[at + len(sides) :]


def _noise(draw: random.Random, _: Sequence[bytes]) -> bytes:
    return draw.choice(_MAGIC) + noise(draw, 4_000)


def _other(draw: random.Random, _: Sequence[bytes]) -> bytes:
    return draw.choice(_OTHER)


def _bomb(draw: random.Random, _: Sequence[bytes]) -> bytes:
    count = draw.choice([1, 10, 100, 1_000, 3_000])
    return draw.choice(_BOMBS)(count)


def _png_bomb(count: int) -> bytes:
    sides = struct.pack(">IIBBBBB", 30 * count, 30 * count, 8, 2, 0, 0, 0)
    pixels = hostile.chunk(b"IDAT", zlib.compress(bytes(300 * count)))
    return b"\x89PNG\r\n\x1a\n" + hostile.chunk(b"IHDR", sides) + pixels + hostile.chunk(b"IEND", b"")


def _cmyk_bomb(count: int) -> bytes:
    return hostile.jpeg(3 * count, 3 * count, hostile.scan(4, 0, 0, 1), components=4)


_BOMBS: tuple[Callable[[int], bytes], ...] = (
    lambda count: hostile.jpeg_of_scans(1_000, 1_000, count),
    lambda count: hostile.jpeg(8, 8, hostile.scan(3, 0, 63), kind=0xC0, before=hostile.segment(0xFE, b"") * count),
    lambda count: hostile.png(hostile.chunk(b"abCd", b"") * count),
    lambda count: hostile.png(hostile.inflating(b"iCCP") * (count // 100)),
    lambda count: hostile.png(hostile.inflating(b"zTXt") * (count // 100)),
    lambda _: hostile.exif_bomb(),
    hostile.gif_of_comments,
    hostile.webp_of_frames,
    hostile.run_length_bmp,
    hostile.tiff_of_tiles,
    _png_bomb,
    _cmyk_bomb,
)
_DAMAGE: tuple[tuple[str, Callable[[random.Random, Sequence[bytes]], bytes]], ...] = (
    ("cut", _cut),
    ("bits flipped", _flipped),
    ("two spliced", _spliced),
    ("another size", _resized),
    ("noise", _noise),
    ("no image", _other),
    ("bomb", _bomb),
)
