"""AV1: the coded size of a stream, which its container may understate, and the number of coded frames."""

from __future__ import annotations

from mimruntime.decoding.container import check_pieces

_SEQUENCE, _FRAME_HEADER, _FRAME = 1, 3, 6
_HEADER_BYTES = 512
"""Bytes that are read of a sequence header; 32 operating points take less."""


def read_units(data: bytes) -> tuple[int, int]:
    """Return the largest coded area of a frame in px (doubled without chroma subsampling), and the number of frames.

    Sizes are read as in section 5.5 of the AV1 specification.

    Args:
        data: open bitstream units (OBU) of an item in an AVIF file.

    Raises:
        ImageSizeError: there are too many units.

    """
    place, count, area, frames = 0, 0, 0, 0
    while place < len(data):
        count += 1
        check_pieces(count, "units")
        head = data[place]
        kind, extended, sized = head >> 3 & 15, head >> 2 & 1, head >> 1 & 1
        place += 1 + extended
        length, place = _leb128(data, place) if sized else (len(data) - place, place)
        if kind == _SEQUENCE:
            area = max(area, _coded_area(data[place : place + min(length, _HEADER_BYTES)]))
        frames += kind in {_FRAME_HEADER, _FRAME}
        place += length
    return area, frames


def _leb128(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[place : place + 8]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, place + index + 1
    return len(data), place


def _coded_area(header: bytes) -> int:
    bits = _Bits(header)
    subsampled = bits.take(3) == 0
    bits.take(1)
    if bits.take(1):  # a still picture's short form
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return (bits.take(width_bits) + 1) * (bits.take(height_bits) + 1) * (1 if subsampled else 2)


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            bits.skip_uvlc()
        if bits.take(1):  # decoder model
            delay_bits = bits.take(5) + 1
            bits.take(42)
    delayed = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if delayed and bits.take(1):
            bits.take(4)


class _Bits:
    """Read the bits of a header in order; beyond its end all bits are 0."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        value = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return value & ((1 << count) - 1)

    def skip_uvlc(self) -> None:
        zeros = 0
        while zeros < 32 and not self.take(1):
            zeros += 1
        self.take(zeros)
