"""Small image files that need much work or memory to decode, written byte by byte as the formats specify."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pillow_heif
from PIL import Image

BASELINE, PROGRESSIVE = 0xC0, 0xC2


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    if kind == "HEIF":
        file = pillow_heif.from_bytes(image.mode, image.size, image.tobytes())
        file.info["exif"] = options.pop("exif", Image.Exif()).tobytes()  # `from_pillow` would turn the pixels first
        file.save(stream, format=kind, enc_params={"preset": "ultrafast"}, **options)
    else:
        image.save(stream, kind, **options)
    return stream.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def scan(components: int, first: int, last: int, approximation: int = 0) -> bytes:
    """Return a scan header without data; libjpeg still processes all blocks."""
    named = b"".join(bytes([index + 1, 0]) for index in range(components))
    return segment(0xDA, bytes([components]) + named + bytes([first, last, approximation]))


def jpeg(
    width: int, height: int, *scans: bytes, components: int = 3, kind: int = PROGRESSIVE, before: bytes = b""
) -> bytes:
    """Return a grey JPEG that declares this size, with the bytes `before` ahead of its tables."""
    tables = segment(0xDB, b"\0" + bytes([1] * 64))
    tables += b"".join(segment(0xC4, bytes([kind << 4, 1, 1, *[0] * 14, 0, 1])) for kind in (0, 1))
    parts = b"".join(bytes([index + 1, 0x11, 0]) for index in range(components))
    frame = segment(kind, struct.pack(">BHHB", 8, height, width, components) + parts)
    return b"\xff\xd8" + before + tables + frame + b"".join(scans) + b"\xff\xd9"


def jpeg_of_scans(width: int, height: int, count: int) -> bytes:
    """Return a progressive JPEG of `count` scans, all empty except the first."""
    return jpeg(width, height, scan(3, 0, 0, 1), *[scan(1, 1, 63)] * (count - 1))


def repeated_scans(photo: Image.Image, count: int) -> bytes:
    """Return a photograph as a progressive JPEG with the last scan's header repeated `count` times."""
    whole = encoded(photo, "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    header = whole[last : last + 2 + struct.unpack(">H", whole[last + 2 : last + 4])[0]]
    return whole[:-2] + header * count + b"\xff\xd9"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*before: bytes, after: bytes = b"") -> bytes:
    """Return a PNG of 8 x 8 px with chunks before and after its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + pixels + after + chunk(b"IEND", b"")


def gif_of_comments(count: int) -> bytes:
    frame = b",\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0;"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"!\xfe" + b"\1a" * count + b"\0" + frame


def webp_of_frames(count: int) -> bytes:
    picture = encoded(Image.new("RGB", (8, 8)), "WEBP")[12:]
    placed = bytes(6) + b"\7\0\0" * 2 + b"\1\0\0\0" + picture
    frames = (b"ANMF" + struct.pack("<I", len(placed)) + placed) * count
    head = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + b"\7\0\0" * 2 + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", 4 + len(head) + len(frames)) + b"WEBP" + head + frames


def run_length_bmp(edge: int) -> bytes:
    """Return a BMP with one run-length byte per row; Pillow fills the rest of each row in Python, pixel by pixel."""
    body = b"\1\1\0\0" * edge
    header = struct.pack("<IiiHHIIiiII", 40, edge, edge, 1, 8, 1, len(body), 0, 0, 256, 0)
    start = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + bytes(1024) + body


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def heif(brand: bytes, kind: bytes, size: tuple[int, int], data: bytes, *, parts: int = 0, repeats: int = 1) -> bytes:
    """Return an AVIF or HEIC with one coded item; with `parts`, a grid that uses it so many times.

    `repeats`: how many times the item's only extent is listed.
    """
    numbers = (1, 2) if parts else (1,)
    entries = [box(b"infe", b"\2\0\0\0", struct.pack(">HH", 1, 0), kind + b"\0")]
    entries += [box(b"infe", b"\2\0\0\0", struct.pack(">HH", 2, 0), b"grid\0")] * (parts > 0)
    references = struct.pack(f">HH{parts}H", 2, parts, *[1] * parts)
    sized = box(b"ispe", bytes(4), struct.pack(">II", *size))
    owned = b"".join(struct.pack(">HBB", number, 1, 1) for number in numbers)

    def lists(start: int) -> bytes:
        pieces = struct.pack(">II", start, len(data)) * repeats
        return box(
            b"meta",
            bytes(4),
            box(b"pitm", bytes(4), struct.pack(">H", numbers[-1])),
            box(b"iinf", bytes(4), struct.pack(">H", len(entries)), *entries),
            box(b"iref", bytes(4), box(b"dimg", references)) if parts else b"",
            box(b"iprp", box(b"ipco", sized), box(b"ipma", bytes(4), struct.pack(">I", len(numbers)), owned)),
            box(b"iloc", bytes(4), b"\x44\0", struct.pack(">HHHH", 1, 1, 0, repeats), pieces),
        )

    head = box(b"ftyp", brand, bytes(4), b"mif1")
    return head + lists(len(head) + len(lists(0)) + 8) + box(b"mdat", data)


def av1(width: int, height: int, frames: int) -> bytes:
    """Return a sequence header of a still picture and `frames` empty frames."""
    bits = f"00011{0:05b}{15:04b}{15:04b}{width - 1:016b}{height - 1:016b}"
    header = int(bits.ljust(56, "0"), 2).to_bytes(7, "big")
    return b"\x0a" + bytes([len(header)]) + header + b"\x32\0" * frames


def avif_that_is_larger(edge: int) -> bytes:
    """Return an AVIF that declares 64 x 64 px, but whose only frame has `edge` x `edge`."""
    return heif(b"avif", b"av01", (64, 64), av1(edge, edge, 1))


def heic_of_pictures(count: int) -> bytes:
    """Return a HEIC of 2,000 x 2,000 px whose stream contains `count` pictures."""
    unit = struct.pack(">I", 3) + b"\x26\1\x80"
    return heif(b"heic", b"hvc1", (2000, 2000), unit * count)


def jpeg2000(
    width: int, height: int, *, tile: int, layers: int = 1, block: int = 4, precinct: int | None = None
) -> bytes:
    """Return a codestream without data; `block` and `precinct` are exponents of their edges."""
    grid = struct.pack(">H8IH", 0, width, height, 0, 0, tile, tile, 0, 0, 3) + bytes([7, 1, 1]) * 3
    sizes = b"" if precinct is None else bytes([precinct << 4 | precinct]) * 6
    style = struct.pack(">BBHBBBBBB", bool(sizes), 0, layers, 0, 5, block - 2, block - 2, 0, 1) + sizes
    steps = b"\x40" + bytes([8 << 3]) * 16
    part = segment(0x90, struct.pack(">HIBB", 0, 0, 0, 1))
    return b"\xff\x4f" + segment(0x51, grid) + segment(0x52, style) + segment(0x5C, steps) + part + b"\xff\x93\xff\xd9"


def tiff_of_tiles(count: int) -> bytes:
    """Return a TIFF of 8 x 8 px whose only strip is listed at `count` offsets."""
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, count, 8)]
    tags += [(278, 3, 1, 8), (279, 4, count, 8)]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    values = bytes(4 * count)
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + table


def exif_bomb() -> bytes:
    """Return a JPEG of 65 kB whose EXIF block has 5,200 entries that each refer to the whole block."""
    entries = b"".join(struct.pack("<HHII", 1000 + index, 7, 64_900, 8) for index in range(5200))
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 5200) + entries + bytes(4)
    return jpeg(8, 8, scan(3, 0, 63), kind=BASELINE, before=segment(0xE1, block.ljust(65_000, b"\0")))


def inflating(kind: bytes) -> bytes:
    """Return a chunk of one kilobyte that inflates to one megabyte: a colour profile or a text."""
    return chunk(kind, b"a\0\0" + zlib.compress(bytes(1_000_000), 9))
