"""JSON records that say what they are: a foreign or newer one is named as such, fields of later versions are passed over.

docs/reference/artifact-format.md says what may change without a new schema number.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

Record = TypeVar("Record")


class _Header(msgspec.Struct):
    """The two fields read first, so that a foreign or newer file is recognised before its details are."""

    format: str = ""
    schema: int = 0


def check_kind(raw: bytes | str, *, format_name: str, schema: int) -> None:
    """Refuse a record of another program, or of a newer schema.

    Args:
        raw: the record.
        format_name: the value its field `format` must have; "" where something else already told the kind.
        schema: the newest that this program reads; it reads every older one.

    Raises:
        ValueError: with a text that completes "FILE …".

    """
    header = parse(raw, _Header, "is not a readable record")
    if format_name and header.format != format_name:
        raise ValueError(f"is not of this program: format is '{header.format}', expected '{format_name}'")
    if header.schema > schema:
        raise ValueError(f"has schema {header.schema}, this program reads up to {schema}; upgrade mimexport")


def decode(raw: bytes | str, kind: type[Record], *, format_name: str, schema: int) -> Record:
    """Return a record, checked as `check_kind` does; fields that `kind` does not know are passed over.

    Raises:
        ValueError: with a text that completes "FILE …".

    """
    check_kind(raw, format_name=format_name, schema=schema)
    return parse(raw, kind)


def parse(raw: bytes | str, kind: type[Record], otherwise: str = "is damaged") -> Record:
    """Return what JSON holds, of whatever program and version.

    Raises:
        ValueError: `otherwise`, with the reason.

    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{otherwise} ({error})") from error
