"""Bound the cost of a protobuf message before it is parsed: two bytes can become a message of a hundred bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mimruntime.serve.problems import Problem

_MOST_NUMBERS = 8_000_000
"""Largest size in bytes of a list of numbers, which take four bytes each; raw contents have no such limit."""
_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields to check: nested messages, and lists of numbers that must be empty."""

    inner: Mapping[int, Shape]
    empty: frozenset[int] = frozenset()
    numbers: int = 0


_PARAMETERS = Shape({2: Shape({})})
_CONTENTS = Shape({}, empty=frozenset({1, 2, 3, 5, 6, 7}), numbers=4)
INFER_REQUEST = Shape({4: _PARAMETERS, 5: Shape({4: _PARAMETERS, 5: _CONTENTS}), 6: Shape({2: _PARAMETERS})})


def check_fields(message: bytes, shape: Shape, most: int) -> None:
    """Refuse a message with more fields, at all levels, than any request needs.

    Args:
        message: the unparsed message.
        shape: the message's shape.
        most: largest number of fields at all levels together.

    Raises:
        Problem: 413 for too many fields; 400 for an invalid message, or numbers of a type that no input has.

    """
    counted = 0
    waiting = [(memoryview(message), shape)]
    while waiting:
        data, shape = waiting.pop()
        position = 0
        while position < len(data):
            counted += 1
            if counted > most:
                raise Problem(413, "too_many_items", f"the message has over {most} fields, more than a request needs")
            tag, position = _varint(data, position)
            number, kind = tag >> 3, tag & 7
            start, position = _value(data, position, kind)
            if position > len(data):
                raise _no_message()
            if number in shape.empty and position > start:
                raise Problem(400, "malformed", "contents of another type than uint_contents or bytes_contents")
            if number == shape.numbers and position - start > _MOST_NUMBERS:
                text = f"uint_contents of over {_MOST_NUMBERS:,} bytes; send pixels in raw_input_contents"
                raise Problem(413, "body_too_large", text)
            if number in shape.inner and kind == 2:
                waiting.append((data[start:position], shape.inner[number]))


def _value(data: memoryview, position: int, kind: int) -> tuple[int, int]:
    """Return where a value starts and ends."""
    if kind == 0:
        return position, _varint(data, position)[1]
    if kind == 1:
        return position, position + 8
    if kind == 5:
        return position, position + 4
    if kind == 2:
        length, start = _varint(data, position)
        return start, start + length
    raise _no_message()


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for index in range(_VARINT_BYTES):
        if position + index >= len(data):
            break
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise _no_message()


def _no_message() -> Problem:
    return Problem(400, "malformed", "the body is not a message of the protocol")
