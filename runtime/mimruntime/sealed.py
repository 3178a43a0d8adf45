"""JSON records that carry their own digest: one changed byte is seen, a foreign or newer file is named as such."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec

Record = TypeVar("Record", bound=msgspec.Struct)
"""A struct with the fields `format`, `schema` and `sha256`; the last covers every other."""


class _Header(msgspec.Struct):
    """The two fields read first, so that a foreign or newer file is recognised before its details are."""

    format: str = ""
    schema: int = 0


def encode(record: msgspec.Struct) -> bytes:
    """Return the canonical bytes of `record`, sealed: its `sha256` is computed here."""
    seal = hashlib.sha256(_canonical(msgspec.structs.replace(record, sha256=""))).hexdigest()
    return _canonical(msgspec.structs.replace(record, sha256=seal))


def decode(raw: bytes, kind: type[Record], *, format_name: str, schema: int) -> Record:
    """Parse and check a sealed record.

    Args:
        raw: the file's bytes.
        kind: what it should hold.
        format_name: the value its field `format` must have.
        schema: the newest schema this program reads.

    Raises:
        ValueError: with a text that completes "FILE …".

    """
    try:
        header = msgspec.json.decode(raw, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"is not a readable record ({error})") from error
    if header.format != format_name:
        raise ValueError(f"is not of this program: format is '{header.format}', expected '{format_name}'")
    if header.schema > schema:
        raise ValueError(f"has schema {header.schema}, this program reads up to {schema}; upgrade mimexport")
    try:
        record = msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"is damaged ({error})") from error
    if encode(record) != raw:
        raise ValueError("was changed after it was written (its own digest does not match)")
    return record


def _canonical(record: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
