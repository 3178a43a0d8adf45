"""Search for the slowest accepted image file of each kind, and print the cost of decoding it.

    python tools/attack_decoding.py [--limit-mb 32] [--only jpeg]

Each family generates a worse file for a larger number. The tool finds the largest number that passes the limits, decodes
that file and prints the CPU time.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from PIL import Image

from mimruntime.decode import decode, open_image
from mimruntime.errors import ImageError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import hostile_images as hostile

_STEPS = 4
_MOST = 20_000_000


def _jpeg_scans(edge: int) -> Callable[[int], bytes]:
    return lambda count: hostile.jpeg(edge, edge, hostile.scan(3, 0, 0, 1), *[hostile.scan(1, 1, 63)] * count)


def _jpeg_refined(edge: int) -> Callable[[int], bytes]:
    refined = hostile.scan(1, 1, 63, 0x10) + b"\xf8\0" * 200
    first = (hostile.scan(3, 0, 0, 1), hostile.scan(1, 1, 63, 1))
    return lambda count: hostile.jpeg(edge, edge, *first, *[refined] * count)


def _jpeg_before(piece: bytes) -> Callable[[int], bytes]:
    picture = hostile.scan(3, 0, 63)
    return lambda count: hostile.jpeg(8, 8, picture, kind=hostile.BASELINE, before=piece * count)


def _avif_patched(edge: int) -> bytes:
    whole = hostile.encoded(Image.new("RGB", (edge, edge)), "AVIF", speed=10)
    place = whole.index(b"ispe") + 8
    return whole[:place] + struct.pack(">II", 64, 64) + whole[place + 8 :]


def _png_before(piece: bytes) -> Callable[[int], bytes]:
    return lambda count: hostile.png(piece * count)


FAMILIES: dict[str, Callable[[int], bytes]] = {
    **{f"jpeg {edge}²: empty scans": _jpeg_scans(edge) for edge in (1000, 4000, 9000)},
    **{f"jpeg {edge}²: refined scans": _jpeg_refined(edge) for edge in (1000, 4000, 9000)},
    "jpeg: comments": _jpeg_before(hostile.segment(0xFE, b"")),
    "jpeg: tables": _jpeg_before(hostile.segment(0xDB, b"\0" + bytes([1] * 64))),
    "jpeg: EXIF": _jpeg_before(hostile.segment(0xE1, b"Exif\0\0" + bytes(65_000))),
    "jpeg: Photoshop": _jpeg_before(hostile.segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5400)),
    "jpeg: junk": _jpeg_before(b"\xff\xd0" + bytes(1000)),
    "png: chunks": _png_before(hostile.chunk(b"abCd", b"")),
    "png: chunks at the end": lambda count: hostile.png(after=hostile.chunk(b"abCd", b"") * count),
    "png: empty pixels": _png_before(hostile.chunk(b"IDAT", b"")),
    "png: profiles": _png_before(hostile.inflating(b"iCCP")),
    "png: texts": _png_before(hostile.inflating(b"zTXt")),
    "gif: comments": hostile.gif_of_comments,
    "webp: frames": hostile.webp_of_frames,
    "bmp: run lengths": lambda count: hostile.run_length_bmp(100 * count),
    "tiff: strips": hostile.tiff_of_tiles,
    "avif: larger than it says": lambda count: _avif_patched(256 * count),
    "avif: frames": lambda count: hostile.heif(b"avif", b"av01", (1000, 1000), hostile.av1(1000, 1000, count)),
    "heic: pictures": hostile.heic_of_pictures,
    "heic: tiles": lambda count: hostile.heif(b"heic", b"hvc1", (64, 64), b"", parts=count),
    "jpeg2000: layers": lambda count: hostile.jpeg2000(512, 512, tile=512, layers=count, precinct=4),
    "jpeg2000: tiles": lambda count: hostile.jpeg2000(count, count, tile=1),
    "jpeg2000: precincts": lambda count: hostile.jpeg2000(16 * count, 16 * count, tile=16 * count, precinct=1),
    "jpeg2000: blocks": lambda count: hostile.jpeg2000(64 * count, 64 * count, tile=64 * count, block=2),
}


def _let_in(make: Callable[[int], bytes], count: int, limit: int) -> bytes | None:
    """Return the file if it is small enough and passes the limits, else None."""
    raw = make(count)
    if len(raw) > limit:
        return None
    try:
        with open_image(raw):
            return raw
    except ImageError:
        return None


def _worst(make: Callable[[int], bytes], limit: int) -> tuple[int, bytes]:
    """Find the largest accepted number by doubling and bisection; return it and its file."""
    low, high, best = 0, 1, b""
    while high < _MOST and (raw := _let_in(make, high, limit)) is not None:
        low, high, best = high, 4 * high, raw
    for _ in range(_STEPS):
        middle = (low + high) // 2
        if (raw := _let_in(make, middle, limit)) is not None:
            low, best = middle, raw
        else:
            high = middle
    return low, best


@click.command()
@click.option("--limit-mb", default=32, show_default=True, help="Largest file to try.")
@click.option("--only", default="", help="Only families whose name starts with this.")
def main(limit_mb: int, only: str) -> None:
    """Print the slowest accepted file of each family."""
    print(f"{'family':<28} {'number':>10} {'bytes':>11} {'CPU ms':>8}")
    for name, make in FAMILIES.items():
        if name.startswith(only):
            count, raw = _worst(make, limit_mb * 1_000_000)
            started = time.process_time()
            try:
                decode(raw)
                end = ""
            except ImageError as error:
                end = f"  {str(error)[:60]}"
            print(f"{name:<28} {count:>10,} {len(raw):>11,} {(time.process_time() - started) * 1000:>8.0f}{end}")


if __name__ == "__main__":
    main()
