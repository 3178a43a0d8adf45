"""The operations of a job's output folder, for local and remote storage."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from mimruntime.errors import OutputError

PARTIAL = ".partial"
STALE_S = 3600
"""Age in seconds after which an unfinished file counts as abandoned; a younger file may belong to another writer."""
PIECE = 1 << 20
"""Bytes copied at a time."""


class Folder(Protocol):
    """The folder a job writes to."""

    def names(self) -> list[str]:
        """Return the names of the files directly in the folder; none if it does not exist."""

    def read(self, name: str) -> bytes:
        """Return a file's content; FileNotFoundError if it is missing."""

    def open(self, name: str) -> Any:
        """Open a file for pyarrow, which reads parts of it; FileNotFoundError if it is missing."""

    def write(self, name: str, content: memoryview | bytes) -> None:
        """Write a file, whole or not at all; OutputError if that fails."""

    def upload(self, name: str, source: Path) -> None:
        """Write the content of the local file `source` in the same way, in pieces if the storage allows it."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a new file and return whether this succeeded; of two writers with different contents, at most one gets True."""

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """Lock out other processes, if the storage has locks that end with a process; OutputError if it is locked."""

    def sweep(self) -> None:
        """Remove files that killed writers left behind."""


def partial_name(name: str) -> str:
    """Return a new hidden name for a file that will be renamed to `name` when it is complete."""
    return f".{name}.{uuid.uuid4().hex}{PARTIAL}"


@contextlib.contextmanager
def said(target: object, doing: str = "cannot write") -> Iterator[None]:
    """Turn errors of a storage into one line."""
    try:
        yield
    except (OSError, NotImplementedError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise OutputError(f"{doing} {target}: {reason}") from error
