"""Features of many images, computed once, kept on disk, memory-mapped; a killed run continues where it stopped."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from mimruntime.batching import split
from mimruntime.cpus import available_cpus
from mimruntime.embedder import Embedder
from mimruntime.engines.base import EMBEDDING, SELECTION
from mimruntime.errors import MimError, OutputError
from mimruntime.image_paths import as_text
from mimruntime.writing import write_file

if TYPE_CHECKING:
    from mimeval.datasets import Split

CHUNK = 64
"""Images between two saves."""
_ROWS, _RECORD, _LOCK = "rows.bin", "record.json", "lock"

Report = Callable[[str], None]
Progress = Callable[[str, int, int], None]


class _Chunk(msgspec.Struct, frozen=True):
    """Rows that were saved together: how many, their checksum, and what the engine took for them."""

    rows: int
    crc32: int
    seconds: float | None


class _Record(msgspec.Struct):
    """What is known of a table's rows."""

    identity: str
    chunks: list[_Chunk] = msgspec.field(default_factory=list)
    errors: dict[int, str] = msgspec.field(default_factory=dict)

    @property
    def done(self) -> int:
        """Rows that are saved."""
        return sum(chunk.rows for chunk in self.chunks)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Features of n images; the arrays are views of a memory map.

    Attributes:
        embedding: float32 (n, D); a row of zeros where the image could not be read.
        selection: float32 (n, gh, gw), the share of every patch; None where the graph does not give it.
        errors: why an image could not be read, by row.
        rate: median images per second of the engine alone; None where it did not run alone.

    """

    embedding: np.ndarray
    selection: np.ndarray | None
    errors: dict[int, str]
    rate: float | None


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Tables under a folder, one a model, engine and split, found by a digest of all that decides their content.

    Attributes:
        folder: grows by 4·D bytes an image and table, and as much as the grid has patches where these are selected.
        report: told in a line what was found stale or damaged and is computed again.
        progress: told what is computed, images done and in all.

    """

    folder: Path
    report: Report = field(default=lambda _: None)
    progress: Progress = field(default=lambda _name, _done, _total: None)

    def tables(self, models: Sequence[tuple[Embedder, str]], images: Split, rows: np.ndarray, name: str) -> list[Table]:
        """Return a table for each model, computing what is not stored yet; a batch is decoded once for all.

        Args:
            models: of one preprocessing, each with the text that identifies its features; they differ in pairs.
            images: of the data set.
            rows: which of them, in order; a table may already hold the first of them.
            name: shown with the progress.

        Raises:
            OutputError: the store cannot be written; what was saved is kept and continued by the next run.
            EngineError: a run failed.
            DataError: the images cannot be loaded at all.

        """
        try:
            with contextlib.ExitStack() as stack:
                # Locked in one order, whatever that of the models: two runs would else wait for each other for ever.
                opened = {
                    text: stack.enter_context(self._open(embedder, text))
                    for text, embedder in sorted(
                        {text: embedder for embedder, text in models}.items(), key=lambda pair: pair[0]
                    )
                }
                files = [opened[text] for _, text in models]
                self._fill(files, images, rows, name)
                return [file.table(len(rows)) for file in files]
        except OSError as error:
            raise OutputError(
                f"cannot write features to {self.folder}: {error.strerror or error}; what was computed is kept,"
                " make room or choose another --cache, and run again"
            ) from error

    @contextlib.contextmanager
    def _open(self, embedder: Embedder, identity: str) -> Iterator[_File]:
        folder = self.folder / hashlib.sha256(identity.encode()).hexdigest()[:24]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.report(f"another run computes {folder}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield _File(folder, embedder, identity, self.report)

    def _fill(self, files: list[_File], images: Split, rows: np.ndarray, name: str) -> None:
        for file in files:
            file.forget_from(
                lambda row: row < len(rows) and _show(files[0].embedder, images, int(rows[row])).pixels is not None
            )
        start = min(file.done for file in files)
        with ThreadPoolExecutor(available_cpus()) as pool:
            while start < len(rows):
                # Files that are further on join where they end, so no chunk overlaps what one of them has.
                ends = [file.done for file in files if file.done > start]
                stop = min([start + CHUNK, len(rows), *ends])
                shown = list(pool.map(lambda row: _show(files[0].embedder, images, int(row)), rows[start:stop]))
                waiting = [file for file in files if file.done == start]
                pixels = [image.pixels for image in shown if image.pixels is not None]
                batches = [np.stack(pixels[part]) for part in _batches(len(pixels), files[0].embedder)]
                for file in waiting:
                    file.add(shown, batches, alone=len(files) == 1)
                start = stop
                self.progress(name, start, len(rows))


@dataclass(frozen=True, slots=True, eq=False)
class _ImageResult:
    """An image made ready, or why it is not."""

    pixels: np.ndarray | None
    error: str | None


def _show(embedder: Embedder, images: Split, row: int) -> _ImageResult:
    try:
        return _ImageResult(embedder.prepare(images.load(row)), None)
    except (OSError, MimError) as error:
        return _ImageResult(None, as_text(f"{images.names[row]}: {error}"))


def _batches(count: int, embedder: Embedder) -> Iterator[slice]:
    start = 0
    for size in split(count, embedder.describe().batch_sizes):
        yield slice(start, start + size)
        start += size


class _File:
    """One table on disk: rows of a fixed layout, appended, and a record of which are whole."""

    def __init__(self, folder: Path, embedder: Embedder, identity: str, report: Report) -> None:
        self.embedder = embedder
        self._folder = folder
        manifest = embedder.artifact.manifest
        layout: list[tuple[str, str, tuple[int, ...]]] = [(EMBEDDING, "<f4", (embedder.dim,))]
        if embedder.has_selection:
            layout.append((SELECTION, "<f4", manifest.backbone.grid))
        self._layout = np.dtype(layout)
        self._record = self._read(identity, report)
        with self._rows.open("ab") as stream:
            stream.truncate(self.done * self._layout.itemsize)

    @property
    def done(self) -> int:
        """Rows that are saved."""
        return self._record.done

    @property
    def _rows(self) -> Path:
        return self._folder / _ROWS

    def forget_from(self, is_readable: Callable[[int], bool]) -> None:
        """Forget the rows from the first image on that could not be read when it was its turn, and can be now."""
        start = 0
        for index, chunk in enumerate(self._record.chunks):
            if any(start <= row < start + chunk.rows and is_readable(row) for row in self._record.errors):
                self._record.chunks = self._record.chunks[:index]
                self._record.errors = {row: text for row, text in self._record.errors.items() if row < start}
                with self._rows.open("ab") as stream:
                    stream.truncate(start * self._layout.itemsize)
                return
            start += chunk.rows

    def add(self, shown: list[_ImageResult], batches: list[np.ndarray], *, alone: bool) -> None:
        """Run `batches`, append a row for every image of `shown`, and save."""
        rows = np.zeros(len(shown), self._layout)
        started = time.perf_counter()
        outputs = [self.embedder.outputs(batch) for batch in batches]
        seconds = time.perf_counter() - started
        read = [index for index, image in enumerate(shown) if image.pixels is not None]
        for field_name in (EMBEDDING, SELECTION):
            if field_name in (self._layout.names or ()) and outputs:
                rows[field_name][read] = np.concatenate([part[field_name] for part in outputs])
        errors = {self.done + index: image.error for index, image in enumerate(shown) if image.error is not None}
        self._append(rows, errors, seconds if alone and read else None)

    def table(self, count: int) -> Table:
        """Return the first `count` rows."""
        rows = np.memmap(self._rows, self._layout, "r", shape=(self.done,))[:count] if self.done else np.empty(
            0, self._layout
        )  # fmt: skip
        # The last chunk of a run may be short, and what is small is slow.
        rates = [
            c.rows / c.seconds for c in self._record.chunks if c.seconds and (c.rows == CHUNK or self.done < CHUNK)
        ]
        return Table(
            embedding=rows[EMBEDDING],
            selection=rows[SELECTION] if SELECTION in (self._layout.names or ()) else None,
            errors={row: text for row, text in self._record.errors.items() if row < count},
            rate=float(np.median(rates)) if rates else None,
        )

    def _append(self, rows: np.ndarray, errors: dict[int, str], seconds: float | None) -> None:
        """Save rows, then the record that counts them: killed between the two, the rows are cut off again."""
        raw = rows.tobytes()
        # Written and not mapped: a full disk under a map would kill the process.
        with self._rows.open("ab", buffering=0) as stream:
            view = memoryview(raw)
            while view:
                view = view[stream.write(view) or 0 :]
            os.fsync(stream.fileno())
        self._record.chunks.append(_Chunk(len(rows), zlib.crc32(raw), seconds))
        self._record.errors |= errors
        write_file(self._folder / _RECORD, msgspec.json.encode(self._record))

    def _read(self, identity: str, report: Report) -> _Record:
        """Return what of the stored table can be trusted, checksum by checksum."""
        path = self._folder / _RECORD
        try:
            record = msgspec.json.decode(path.read_bytes(), type=_Record)
        except FileNotFoundError:
            return _Record(identity)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            report(f"WARNING: {path} is damaged; its features are computed again")
            return _Record(identity)
        if record.identity != identity:
            report(f"WARNING: {path} belongs to other features (stale); they are computed again")
            return _Record(identity)
        whole = self._whole_chunks(record)
        if whole < len(record.chunks):
            record.chunks = record.chunks[:whole]
            report(
                f"WARNING: {self._rows} is damaged after image {record.done}; the rest of its features is computed again"
            )
        record.errors = {row: text for row, text in record.errors.items() if row < record.done}
        return record

    def _whole_chunks(self, record: _Record) -> int:
        if not self._rows.exists():
            return 0
        with self._rows.open("rb") as stream:
            for index, chunk in enumerate(record.chunks):
                raw = stream.read(chunk.rows * self._layout.itemsize)
                if len(raw) != chunk.rows * self._layout.itemsize or zlib.crc32(raw) != chunk.crc32:
                    return index
        return len(record.chunks)
