"""JSON records that end in their own digest, so that any changed byte is detected."""

from __future__ import annotations

import hashlib
import re
from typing import TypeVar

import msgspec

from mimruntime import records

Record = TypeVar("Record", bound=msgspec.Struct)
"""A struct with the fields `format`, `schema` and, last, `sha256`."""

_SEAL = re.compile(rb'"sha256": "([0-9a-f]{64})"\n\}\n\Z')
_BLANK = b'"sha256": ""\n}\n'


def encode(record: msgspec.Struct) -> bytes:
    """Return the bytes of `record`; its last field `sha256` becomes the digest of the bytes with that field empty."""
    blank = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(record, sha256="")), indent=2) + b"\n"
    if not blank.endswith(_BLANK):
        raise TypeError(f"the last field of {type(record).__name__} must be sha256")
    return blank.removesuffix(_BLANK) + b'"sha256": "%s"\n}\n' % hashlib.sha256(blank).hexdigest().encode()


def decode(raw: bytes, kind: type[Record], *, format_name: str, schema: int) -> Record:
    """Check the digest of a record and parse it. The digest covers the file's bytes, including unknown fields.

    Args:
        raw: the file's bytes.
        kind: type of the record.
        format_name: required value of the field `format`.
        schema: the newest schema that this program reads.

    Raises:
        ValueError: the message continues "FILE …".

    """
    records.check_kind(raw, format_name=format_name, schema=schema)
    seal = _SEAL.search(raw)
    if seal is None:
        raise ValueError("is damaged or cut short (it does not end in its own digest)")
    blank = raw[: seal.start(1)] + raw[seal.end(1) :]
    if hashlib.sha256(blank).hexdigest().encode() != seal[1]:
        raise ValueError("was changed after it was written (its own digest does not match)")
    return records.decode(raw, kind, format_name=format_name, schema=schema)
