"""Decode JSON bodies at a cost bounded by their size.

In a general decoder two bytes of JSON can cost a kilobyte of objects or errors. Here commas and escapes of a body are
counted first, then each field is measured as text, and only then are objects built.
"""

from __future__ import annotations

import functools
import re
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from mimruntime.serve.problems import Problem

T = TypeVar("T")

SMALL = 16_384
"""Largest size of a field in bytes of JSON, unless it carries images."""
_REST = 65_536
"""Largest size in bytes of JSON outside of known fields."""
_STEP = 1 << 20
"""Bytes examined in one call; other threads run between calls."""
_SHOWN = 200
"""Characters of a decoder's error that are shown, since it quotes the body."""
_ESCAPE = re.compile(rb"\\u(?:[^0]|0[^0]|00[^0-7])")
"""An escape of a character beyond ASCII."""
_PLACED = re.compile(r"(?P<what>.*) - at `(?:key` in `)?\$\.?(?P<where>.*)`", re.DOTALL)


def check_marks(text: bytes, most_commas: int) -> None:
    """Refuse a body with more values than any request needs, or with too many escapes.

    Args:
        text: a body, or the JSON part of one.
        most_commas: largest number of commas, inside and outside of strings.

    Raises:
        Problem: 413.

    """
    commas = escapes = 0
    for start in range(0, len(text), _STEP):
        piece = text[start : start + _STEP]
        commas += piece.count(b",")
        escapes += piece.count(b"\\")
        if commas > most_commas:
            raise Problem(413, "too_many_items", f"the JSON has over {most_commas:,} commas, more than a request needs")
        if escapes > SMALL + len(text) // 16:  # base64 with every '/' and '+' escaped has fewer
            raise Problem(
                413, "body_too_large", "more than a sixteenth of the JSON is backslashes; send characters unescaped"
            )


def measure(text: bytes | Raw, kind: type[msgspec.Struct], *, large: str, at: str = "") -> Raw:
    """Refuse an object with a field longer than any valid value; build no objects.

    Args:
        text: the object.
        kind: the type to which it will be decoded.
        large: the field that may have any length.
        at: position of the object in the body.

    Returns:
        The text of the large field, empty if missing.

    Raises:
        Problem: 400 if it is not JSON, 422 if it is not an object or a field is too long.

    """
    outline = decode(text, _outline(kind), at=at)
    fields: dict[str, Raw] = {name: getattr(outline, name) for name in kind.__struct_fields__}
    for name, raw in fields.items():
        if name != large and len(memoryview(raw)) > SMALL:
            raise Problem(422, "schema", f"{_join(at, name)}: over {SMALL:,} bytes", param=_join(at, name))
    rest = len(memoryview(text)) - sum(len(memoryview(raw)) for raw in fields.values())
    if kind.__struct_config__.forbid_unknown_fields and rest > _REST:  # the error names forbidden fields in full
        raise Problem(422, "schema", f"{at or 'body'}: over {_REST:,} bytes outside of {', '.join(fields)}")
    return fields[large]


def check_ascii(raw: Raw, at: str) -> None:
    """Refuse strings beyond ASCII: one such character can make Python store the whole string in four bytes a character."""
    text = memoryview(raw)
    for start in range(0, len(text), _STEP):
        piece = bytes(text[start : start + _STEP + len("\\u0080")])
        if not piece.isascii() or _ESCAPE.search(piece):
            raise Problem(422, "schema", f"{at}: not ASCII, as base64 and URLs are", param=at)


def decode(text: bytes | Raw, kind: type[T], *, at: str = "") -> T:
    """Return `text` as `kind`.

    Raises:
        Problem: 400 if it is not JSON, 422 if it does not match `kind`; one line with the position of the first error.

    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        placed = _PLACED.fullmatch(str(error))
        where = _join(at, placed["where"][:_SHOWN] if placed else "")
        what = (placed["what"] if placed else str(error))[:_SHOWN]
        raise Problem(422, "schema", f"{where or 'body'}: {what}", param=where or None) from None
    except RecursionError:
        raise Problem(400, "malformed", "the body is nested too deeply") from None
    except ValueError as error:  # of msgspec, or of the codec
        raise Problem(400, "malformed", f"the body is not JSON: {str(error)[:_SHOWN]}") from None


@functools.cache
def _outline(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Return a type with the fields of `kind`, each kept as text; other fields are skipped."""
    fields: list[Any] = [(name, Raw, Raw()) for name in kind.__struct_fields__]
    return msgspec.defstruct(kind.__name__, fields)


def _join(at: str, name: str) -> str:
    return f"{at}{'.' if at and name and not name.startswith('[') else ''}{name}"
