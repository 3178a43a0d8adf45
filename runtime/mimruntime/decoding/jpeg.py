"""JPEG: count the scans, since a file of a few kilobytes can require thousands of passes over all coefficients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from mimruntime.decoding.container import Container, check_pieces, length_of
from mimruntime.errors import ImageError

_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_COMMON = {0xC0, 0xC1, 0xC2}
"""Markers of common frames: Huffman coding, baseline, extended or progressive."""
_ARITHMETIC = range(0xC9, 0xD0)
_SCAN, _END, _EXIF, _PHOTOSHOP, _ADOBE = 0xDA, 0xD9, 0xE1, 0xED, 0xEE
_MARKER = re.compile(rb"\xff[^\xff\x00]")
_BLOCK = 1 << 20

# Seconds, measured on one core of an EPYC of 2023 on the worst files found, and rounded up.
_PER_SEGMENT = 4e-6
_PER_JUNK_BYTE = 12e-8
_PER_FILL_BYTE = 4e-7  # 0xFF before a marker, which Pillow reads one by one
_PER_PHOTOSHOP_BYTE = 5e-8
_PER_EXIF_BYTE = 1e-10  # segments are joined one by one, so each is copied once per later segment
_PER_SAMPLE = 3.5e-9
_PER_BUFFERED_SAMPLE = 7e-9
_PER_SCANNED_SAMPLE = 0.7e-9
_PER_CODED_BYTE = 5e-9
_PER_SCANNED_BYTE = 1e-8
_PER_ARITHMETIC_BYTE = 15e-8


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame's header; `samples` of all components in whole blocks of 8 x 8; `common` if every decoder can read it."""

    width: int
    height: int
    components: int
    ids: bytes
    samples: int
    progressive: bool
    arithmetic: bool
    common: bool


def read_jpeg(stream: IO[bytes]) -> Container:
    """Read the markers of a whole file, from its start, as libjpeg does.

    Raises:
        ImageError: there is no frame or no scan.
        ImageSizeError: there are too many segments.

    """
    result, frame, exif, ycbcr = Container(), None, 0, True
    for count, (marker, body, junk_s) in enumerate(_segments(stream)):
        check_pieces(count, "segments")
        result.seconds += _PER_SEGMENT + junk_s
        if marker in _FRAMES:
            frame = _read_frame(marker, body)
        elif marker == _PHOTOSHOP:
            result.seconds += len(body) * _PER_PHOTOSHOP_BYTE
        elif marker == _EXIF:
            exif += len(body)
            result.seconds += exif * _PER_EXIF_BYTE
            result.metadata.append(body)
        elif marker == _ADOBE and body.startswith(b"Adobe"):
            ycbcr = body[11:12] == b"\x01"
        elif marker == _SCAN and frame and body:
            result.ycbcr = frame.components == 1 or (ycbcr and frame.ids != b"RGB")
            result.scan = stream.tell()
            _add_scans(result, frame, stream, first=body[0])
            return result
    raise ImageError("cannot be read (a JPEG without a picture)")


def _segments(stream: IO[bytes]) -> Iterator[tuple[int, bytes, float]]:
    """Yield each marker up to the first scan, its content, and the seconds to skip the bytes before it."""
    while True:
        marker, junk_s = _next_marker(stream)
        if marker is None or marker == _END:
            return
        length = 0 if marker in _STANDALONE else int.from_bytes(stream.read(2), "big")
        yield marker, stream.read(max(0, length - 2)), junk_s


def _next_marker(stream: IO[bytes]) -> tuple[int | None, float]:
    """Return the next marker, None at the end, and the seconds to skip the bytes before it."""
    head = stream.read(2)
    if len(head) == 2 and head[0] == 0xFF and head[1] not in {0x00, 0xFF}:
        return head[1], 0
    tail, skipped_s = head, 0.0
    while block := stream.read(_BLOCK):
        data = tail + block
        found = _MARKER.search(data)
        skipped = data[: found.start() if found else -1]
        fill = skipped.count(b"\xff")
        skipped_s += fill * _PER_FILL_BYTE + (len(skipped) - fill) * _PER_JUNK_BYTE
        if found:
            stream.seek(found.end() - len(data), 1)
            return data[found.end() - 1], skipped_s
        tail = data[-1:]
    return None, skipped_s


def _read_frame(marker: int, body: bytes) -> _Frame:
    """Read the precision, height, width, and the id, sampling factors and table of each component."""
    components = body[5] if len(body) > 5 else 0
    factors = [(byte >> 4, byte & 15) for byte in body[7 : 6 + 3 * components : 3]]
    if len(body) < 6 + 3 * components or not all(across and down for across, down in factors) or not factors:
        raise ImageError("cannot be read (a JPEG frame without components)")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    columns = -(-width // (8 * max(across for across, _ in factors)))
    rows = -(-height // (8 * max(down for _, down in factors)))
    samples = sum(64 * columns * across * rows * down for across, down in factors)
    common = marker in _COMMON and body[0] == 8 and components in {1, 3}
    ids = body[6 : 6 + 3 * components : 3]
    return _Frame(width, height, components, ids, samples, marker in _PROGRESSIVE, marker in _ARITHMETIC, common)


def _add_scans(result: Container, frame: _Frame, stream: IO[bytes], *, first: int) -> None:
    """Add the cost of the scans; the stream is within the first scan, which has `first` components."""
    several = frame.progressive or first < frame.components
    coded = length_of(stream) - stream.tell()
    if not several:
        coded = min(coded, 4 * frame.samples)  # the most that a scan can hold; a video may follow the picture
    result.size = (frame.width, frame.height)
    result.components = frame.components if frame.common else None
    huffman = _PER_SCANNED_BYTE if several else _PER_CODED_BYTE
    result.seconds += coded * (_PER_ARITHMETIC_BYTE if frame.arithmetic else huffman)
    if several:
        result.buffer = 2 * frame.samples
        result.seconds += frame.samples * (_PER_BUFFERED_SAMPLE + _count_scans(stream) * _PER_SCANNED_SAMPLE)
    else:
        result.seconds += frame.samples * _PER_SAMPLE


def _count_scans(stream: IO[bytes]) -> int:
    """Return the number of scans, from within the first scan to the end of the stream.

    In coded data the marker's byte never follows 0xFF. Other bytes that look like a scan (a thumbnail, a video after the
    picture) can only make the count too high.
    """
    scans, last = 1, b""
    while block := stream.read(_BLOCK):
        scans += block.count(b"\xff\xda") + (last == b"\xff" and block[0] == _SCAN)
        last = block[-1:]
    return scans
