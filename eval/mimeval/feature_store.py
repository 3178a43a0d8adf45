"""Features of many images, computed once, kept on disk, memory-mapped; a killed run continues where it stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mimruntime.batching import split
from mimruntime.cpus import available_cpus
from mimruntime.embedder import Embedder
from mimruntime.engines.base import EMBEDDING, SELECTION
from mimruntime.errors import MimError
from mimruntime.image_paths import as_text
from mimruntime.rows import CHUNK, Report, StoredRows, open_rows

if TYPE_CHECKING:
    from mimeval.datasets import Split

Progress = Callable[[str, int, int], None]


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
        with contextlib.ExitStack() as stack:
            # Locked in one order, whatever that of the models: two runs would else wait for each other for ever.
            opened = {
                text: stack.enter_context(self._open(embedder, text))
                for text, embedder in sorted(
                    {text: embedder for embedder, text in models}.items(), key=lambda pair: pair[0]
                )
            }
            found = [opened[text] for _, text in models]
            self._fill(found, images, rows, name)
            return [features.table(len(rows)) for features in found]

    @contextlib.contextmanager
    def _open(self, embedder: Embedder, identity: str) -> Iterator[_Features]:
        layout: list[tuple[str, str, tuple[int, ...]]] = [(EMBEDDING, "<f4", (embedder.dim,))]
        if embedder.has_selection:
            layout.append((SELECTION, "<f4", embedder.artifact.manifest.backbone.grid))
        with open_rows(self.folder, identity, np.dtype(layout), self.report) as stored:
            yield _Features(embedder, stored)

    def _fill(self, found: list[_Features], images: Split, rows: np.ndarray, name: str) -> None:
        embedder = found[0].embedder
        for features in found:
            features.forget_from(
                lambda row: row < len(rows) and _show(embedder, images, int(rows[row])).pixels is not None
            )
            features.stored.require_room(len(rows))
        start = min(features.stored.done for features in found)
        with ThreadPoolExecutor(available_cpus()) as pool:
            while start < len(rows):
                # Tables that are further on join where they end, so no chunk overlaps what one of them has.
                ends = [features.stored.done for features in found if features.stored.done > start]
                stop = min([start + CHUNK, len(rows), *ends])
                shown = list(pool.map(lambda row: _show(embedder, images, int(row)), rows[start:stop]))
                waiting = [features for features in found if features.stored.done == start]
                pixels = [image.pixels for image in shown if image.pixels is not None]
                batches = [np.stack(pixels[part]) for part in _batches(len(pixels), embedder)]
                for features in waiting:
                    features.add(shown, batches, alone=len(found) == 1)
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


@dataclass(frozen=True, slots=True)
class _Features:
    """The rows of one model, and the embedder that makes them."""

    embedder: Embedder
    stored: StoredRows

    def forget_from(self, is_readable: Callable[[int], bool]) -> None:
        """Forget the rows from the first image on that could not be read when it was its turn, and can be now."""
        for index, chunk in enumerate(self.stored.chunks):
            if any(is_readable(row) for row in chunk.errors):
                self.stored.keep(index)
                return

    def add(self, shown: list[_ImageResult], batches: list[np.ndarray], *, alone: bool) -> None:
        """Run `batches`, append a row for every image of `shown`, and save."""
        rows = np.zeros(len(shown), self.stored.layout)
        started = time.perf_counter()
        outputs = [self.embedder.outputs(batch) for batch in batches]
        seconds = time.perf_counter() - started
        read = [index for index, image in enumerate(shown) if image.pixels is not None]
        for name in rows.dtype.names or ():
            if outputs:
                rows[name][read] = np.concatenate([part[name] for part in outputs])
        errors = {self.stored.done + index: image.error for index, image in enumerate(shown) if image.error is not None}
        self.stored.append(rows, seconds=seconds if alone and read else None, errors=errors)

    def table(self, count: int) -> Table:
        """Return the first `count` rows."""
        rows, chunks = self.stored.read()[:count], self.stored.chunks
        # The last chunk of a run may be short, and what is small is slow.
        rates = [c.rows / c.seconds for c in chunks if c.seconds and (c.rows == CHUNK or self.stored.done < CHUNK)]
        return Table(
            embedding=rows[EMBEDDING],
            selection=rows[SELECTION] if self.embedder.has_selection else None,
            errors={row: text for chunk in chunks for row, text in chunk.errors.items() if row < count},
            rate=float(np.median(rates)) if rates else None,
        )
