"""Store features of images on disk: computed once, memory-mapped; a killed run continues where it stopped."""

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
        embedding: float32 (n, D); zeros in rows of unreadable images.
        selection: float32 (n, gh, gw), the weight of each patch; None if the graph does not output it.
        errors: errors of unreadable images, by row.
        rate: median images per second of the engine alone; None if it shared batches with others.

    """

    embedding: np.ndarray
    selection: np.ndarray | None
    errors: dict[int, str]
    rate: float | None


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Tables in a folder, one per model, engine and split, found by a digest of everything that determines the content.

    Attributes:
        folder: grows by 4·D bytes per image and table, and by 4 bytes per patch if patch weights are stored.
        report: called with one line if stored rows are stale or damaged and are computed again.
        progress: called with a name, the number of images done and the total.

    """

    folder: Path
    report: Report = field(default=lambda _: None)
    progress: Progress = field(default=lambda _name, _done, _total: None)

    def tables(self, models: Sequence[tuple[Embedder, str]], images: Split, rows: np.ndarray, name: str) -> list[Table]:
        """Return a table per model; compute missing rows, and decode each batch once for all models.

        Args:
            models: models with the same preprocessing, each with a unique text that identifies its features.
            images: the images.
            rows: rows of `images` to use, in order; a table may already have the first of them.
            name: name for the progress.

        Raises:
            OutputError: the store is not writable; the next run continues from the saved rows.
            EngineError: a run failed.
            DataError: the images cannot be loaded.

        """
        with contextlib.ExitStack() as stack:
            # Lock in sorted order, so that two runs cannot deadlock.
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
                # End the chunk where a longer table ends, so that no chunk overlaps stored rows.
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
    """A preprocessed image, or its error."""

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
    """The stored rows of one model, and the embedder that computes them."""

    embedder: Embedder
    stored: StoredRows

    def forget_from(self, is_readable: Callable[[int], bool]) -> None:
        """Discard rows from the first image that was unreadable when stored but is readable now."""
        for index, chunk in enumerate(self.stored.chunks):
            if any(is_readable(row) for row in chunk.errors):
                self.stored.keep(index)
                return

    def add(self, shown: list[_ImageResult], batches: list[np.ndarray], *, alone: bool) -> None:
        """Run `batches`, append a row per image of `shown`, and save."""
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
        # Ignore short last chunks, because small batches are slower.
        rates = [c.rows / c.seconds for c in chunks if c.seconds and (c.rows == CHUNK or self.stored.done < CHUNK)]
        return Table(
            embedding=rows[EMBEDDING],
            selection=rows[SELECTION] if self.embedder.has_selection else None,
            errors={row: text for chunk in chunks for row, text in chunk.errors.items() if row < count},
            rate=float(np.median(rates)) if rates else None,
        )
