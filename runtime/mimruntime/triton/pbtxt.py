"""Write nested dicts as protobuf text, without the protobuf package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping


class Word(str):
    """An enum value, written without quotes."""

    __slots__ = ()


def text(message: Mapping[str, object]) -> str:
    """Return a message as protobuf text; a list is a repeated field, a dict is a message."""
    return "\n".join(_lines(message, "")) + "\n"


def _lines(message: Mapping[str, object], indent: str) -> Iterator[str]:
    for name, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(item, f"{indent}  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(item)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word) or not isinstance(value, str):
        return str(value)
    # Protobuf text accepts JSON's escapes except \u for characters beyond 16 bits, so write UTF-8 unescaped.
    return json.dumps(value, ensure_ascii=False)
