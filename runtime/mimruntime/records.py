"""Decode versioned JSON records: foreign and newer ones are reported as such, unknown fields are ignored.

docs/reference/artifact-format.md defines what may change without a new schema number.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

Record = TypeVar("Record")


class _Header(msgspec.Struct):
    """The two fields that are read first, to recognise foreign and newer files."""

    format: str = ""
    schema: int = 0


def check_kind(raw: bytes | str, *, format_name: str, schema: int) -> None:
    """Raise ValueError for a record of another program or of a newer schema.

    Args:
        raw: the record.
        format_name: required value of the field `format`; "" skips this check.
        schema: the newest schema that this program reads; it reads all older ones.

    Raises:
        ValueError: the message continues "FILE …".

    """
    header = parse(raw, _Header, "is not a readable record")
    if format_name and header.format != format_name:
        raise ValueError(f"is not of this program: format is '{header.format}', expected '{format_name}'")
    if header.schema > schema:
        raise ValueError(f"has schema {header.schema}, this program reads up to {schema}; upgrade mimexport")


def decode(raw: bytes | str, kind: type[Record], *, format_name: str, schema: int) -> Record:
    """Check a record with `check_kind` and return it; fields unknown to `kind` are ignored.

    Raises:
        ValueError: the message continues "FILE …".

    """
    check_kind(raw, format_name=format_name, schema=schema)
    return parse(raw, kind)


def parse(raw: bytes | str, kind: type[Record], otherwise: str = "is damaged") -> Record:
    """Parse JSON as `kind`, without checking program and version.

    Raises:
        ValueError: the JSON is invalid; the message is `otherwise` with the reason.

    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{otherwise} ({error})") from error
