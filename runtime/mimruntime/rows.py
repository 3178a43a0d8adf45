"""Rows that are computed once and kept on disk: locked, with checksums; a killed run continues where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mimruntime.errors import OutputError
from mimruntime.filesystem import locked
from mimruntime.writing import write_file

CHUNK = 64
"""Rows between two saves, by those who write here."""
_ROWS, _RECORD, _LOCK = "rows.bin", "chunks.json", "lock"

Report = Callable[[str], None]


class Chunk(msgspec.Struct, frozen=True):
    """Rows that were saved together.

    Attributes:
        rows: how many.
        crc32: checksum of their bytes.
        seconds: what computing them took; None where that tells nothing.
        errors: why a row could not be computed, by its number among all rows.

    """

    rows: int
    crc32: int
    seconds: float | None = None
    errors: dict[int, str] = {}


class _Record(msgspec.Struct):
    """Whose rows they are, and which are whole."""

    identity: str
    chunks: list[Chunk]


@contextlib.contextmanager
def open_rows(
    root: Path, identity: str, layout: np.dtype[Any], report: Report = lambda line: None
) -> Iterator[StoredRows]:
    """Yield the rows of one identity, which no other run writes until the block ends.

    Args:
        root: of the cache; a folder in it is named by a digest of `identity`.
        identity: names all that decides what the rows hold.
        layout: of a row, with named fields.
        report: told in a line that another run is waited for, and what was found stale or damaged.

    Raises:
        OutputError: the cache cannot be written.

    """
    folder = root / hashlib.sha256(identity.encode()).hexdigest()[:24]
    with _said(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _LOCK).touch()
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(locked(folder / _LOCK, wait=False)):
            report(f"another run computes {folder}; waiting for it")
            stack.enter_context(locked(folder / _LOCK))
        yield StoredRows(folder, identity, layout, report)


class StoredRows:
    """Rows of one layout in a file, in the order in which they were appended; see `open_rows`.

    Args:
        folder: exists; of these rows alone.
        identity: names all that decides what they hold; rows of another are dropped.
        layout: of a row.
        report: told what was found stale or damaged.

    Attributes:
        layout: see above.
        chunks: what is saved, in order.

    """

    def __init__(self, folder: Path, identity: str, layout: np.dtype[Any], report: Report) -> None:
        self._folder, self._identity, self.layout = folder, identity, layout
        self.chunks = self._read_record(report)
        self._cut()

    @property
    def done(self) -> int:
        """Rows that are saved."""
        return sum(chunk.rows for chunk in self.chunks)

    def require_room(self, count: int) -> None:
        """Say before hours of computing what would end them.

        Raises:
            OutputError: the disk has no room for `count` rows in all.

        """
        needed = (count - self.done) * self.layout.itemsize
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise OutputError(
                f"{count} rows need {needed / 1e6:,.1f} MB more in {self._folder}, where {free / 1e6:,.1f} MB are free;"
                " make room or choose another --cache"
            )

    def append(
        self, rows: np.ndarray, *, seconds: float | None = None, errors: Mapping[int, str] | None = None
    ) -> None:
        """Save rows (n,) of the layout; see `Chunk` for what is noted with them.

        Raises:
            OutputError: they cannot be written; what was saved before stays.

        """
        raw = rows.tobytes()
        with _said(self._folder):
            # Written and not mapped: a full disk under a map would kill the process.
            with self._rows.open("ab", buffering=0) as stream:
                view = memoryview(raw)
                while view:
                    view = view[stream.write(view) or 0 :]
                os.fsync(stream.fileno())
            # Killed before the record counts them, the rows are cut off by the next run.
            chunks = [*self.chunks, Chunk(len(rows), zlib.crc32(raw), seconds, dict(errors or {}))]
            write_file(self._folder / _RECORD, msgspec.json.encode(_Record(self._identity, chunks)))
        self.chunks = chunks

    def keep(self, chunks: int) -> None:
        """Forget all rows after the first `chunks` chunks.

        Raises:
            OutputError: the file cannot be changed.

        """
        self.chunks = self.chunks[:chunks]
        self._cut()

    def read(self) -> np.ndarray:
        """Return all rows, memory-mapped; what is written into them stays in memory, since torch takes no read-only array."""
        if not self.chunks:
            return np.empty(0, self.layout)
        return np.memmap(self._rows, self.layout, "c", shape=(self.done,))

    @property
    def _rows(self) -> Path:
        return self._folder / _ROWS

    def _cut(self) -> None:
        with _said(self._folder), self._rows.open("ab") as stream:
            stream.truncate(self.done * self.layout.itemsize)

    def _read_record(self, report: Report) -> list[Chunk]:
        """Return what can be trusted of what is stored, checksum by checksum."""
        path = self._folder / _RECORD
        try:
            record = msgspec.json.decode(path.read_bytes(), type=_Record)
        except FileNotFoundError:
            return []
        except (msgspec.MsgspecError, UnicodeDecodeError):
            report(f"WARNING: {path} is damaged; its rows are computed again")
            return []
        if record.identity != self._identity:
            report(f"WARNING: {path} belongs to other rows (stale); they are computed again")
            return []
        whole = record.chunks[: self._count_whole(record.chunks)]
        if len(whole) < len(record.chunks):
            done = sum(chunk.rows for chunk in whole)
            report(f"WARNING: {self._rows} is damaged after row {done}; the rest is computed again")
        return whole

    def _count_whole(self, chunks: list[Chunk]) -> int:
        if not self._rows.exists():
            return 0
        with self._rows.open("rb") as stream:
            for index, chunk in enumerate(chunks):
                raw = stream.read(chunk.rows * self.layout.itemsize)
                if len(raw) != chunk.rows * self.layout.itemsize or zlib.crc32(raw) != chunk.crc32:
                    return index
        return len(chunks)


@contextlib.contextmanager
def _said(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, OutputError) as error:
        cause = error.strerror if isinstance(error, OSError) else None
        raise OutputError(
            f"cannot write the cache {folder}: {cause or error}; what was computed is kept,"
            " make room or choose another --cache, and run again"
        ) from error
