"""What a job needs of the folder it writes to, wherever that lies."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from mimruntime.errors import OutputError

PARTIAL = ".partial"
STALE_S = 3600
"""What a writer left unfinished, and has not touched for so long, belongs to nobody; younger, it may be another's."""
PIECE = 1 << 20
"""Bytes that are copied at a time."""


class Folder(Protocol):
    """The folder a job writes to."""

    def names(self) -> list[str]:
        """Return the names of the files directly in the folder; none where it does not exist."""

    def read(self, name: str) -> bytes:
        """Return a file's content; FileNotFoundError where it is not there."""

    def open(self, name: str) -> Any:
        """Open a file for pyarrow, which reads the parts it wants; FileNotFoundError where it is not there."""

    def write(self, name: str, content: memoryview | bytes) -> None:
        """Write a file, whole or not at all; OutputError where that cannot be done."""

    def upload(self, name: str, source: Path) -> None:
        """Write what the local file `source` holds, likewise, in pieces where the storage takes them."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that is not there; of writers of different contents, no two are ever told True."""

    def remove(self, name: str) -> None:
        """Remove a file, which may be gone already."""

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes out, where the storage has locks that end with a process; OutputError if one is in."""

    def sweep(self) -> None:
        """Remove what killed writers left behind."""


def partial_name(name: str) -> str:
    """Return a hidden name, new at each call, for what will be called `name` once it is whole."""
    return f".{name}.{uuid.uuid4().hex}{PARTIAL}"


@contextlib.contextmanager
def said(target: object, doing: str = "cannot write") -> Iterator[None]:
    """Make one line of what a storage raises."""
    try:
        yield
    except (OSError, NotImplementedError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise OutputError(f"{doing} {target}: {reason}") from error
