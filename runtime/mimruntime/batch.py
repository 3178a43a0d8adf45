"""A picklable embedder for Ray and Spark: columns in, columns out; it opens the artifact in each worker process."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimruntime.artifact import key_of
from mimruntime.batching import NewBatch
from mimruntime.decode import Source, describe
from mimruntime.embedder import Embedder
from mimruntime.errors import ImageError, OptionError
from mimruntime.image_paths import as_text


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Result for one named image.

    Attributes:
        path: name of the image.
        vector: float32 (D,), unit length; None if there is an error.
        error: one line that begins with the path; None if there is a vector.

    """

    path: str
    vector: np.ndarray | None
    error: str | None


class BatchEmbedder:
    """A picklable `Embedder`: only its settings are pickled, and each process opens it on first use.

    >>> from mimruntime import BatchEmbedder
    >>> embed = BatchEmbedder("artifacts/tiny", column="path")
    >>> columns = embed({"path": ["photos/a.jpg", "photos/none.jpg"]})
    >>> columns["vector"].shape, columns["error"][0] == "", columns["error"][1] == ""
    ((2, 192), True, False)
    >>> embed.close()

    With Ray Data: `dataset.map_batches(BatchEmbedder, fn_constructor_args=[artifact], concurrency=2, batch_size=64)`.
    For Ray Serve and Spark see `examples/`.

    Args:
        artifact: the artifact folder; every worker must be able to read this path.
        column: the column of images: paths, encoded bytes, or uint8 arrays (H, W, 3).
        settings: arguments of `Embedder.open`: engine, provider, threads, workers, batch_size, expect_space,
            expect_precision, public_key, check_reference.

    """

    def __init__(self, artifact: str | os.PathLike[str], *, column: str = "image", **settings: Any) -> None:
        self.artifact = os.fspath(artifact)
        self.column = column
        self.settings = {**settings, "public_key": key_of(artifact, settings.get("public_key"))}
        self._forget()

    def _forget(self) -> None:
        self._embedder: Embedder | None = None
        self._opening = threading.Lock()
        self._process = os.getpid()

    @property
    def embedder(self) -> Embedder:
        """The opened embedder of this process. A forked process opens its own.

        Raises:
            MimError: as `Embedder.open`.

        """
        if self._process != os.getpid():  # the parent's embedder cannot be used after a fork
            self._forget()
        with self._opening:
            if self._embedder is None:
                self._embedder = Embedder.open(self.artifact, **self.settings)
            return self._embedder

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of `batch` and the new columns `vector`, `error` and `embedding_space`.

        Args:
            batch: columns of equal length, including `column`; errors name the row's 'path' if there is such a column.

        Returns:
            `vector`: float32 (n, D), NaN in rows with an error. `error`: text, "" if there is none. `embedding_space`: text.
            A column of image paths is kept, even if some are None; a column of bytes or pixels is removed.

        Raises:
            OptionError: `column` is not in the batch.
            EngineError: a run failed.

        """
        if self.column not in batch:
            raise OptionError(f"no column '{self.column}' in a batch of {', '.join(batch)}; name it: column=…")
        images = batch[self.column]
        names = batch.get("path", [_name(image, row) for row, image in enumerate(images)])
        rows = list(embed_rows(self.embedder, zip(map(str, names), images, strict=True)))
        vectors = np.full((len(rows), self.embedder.dim), np.nan, np.float32)
        for place, row in zip(vectors, rows, strict=True):
            if row.vector is not None:
                place[:] = row.vector
        paths = all(image is None or isinstance(image, str) for image in images)
        return {
            **{name: column for name, column in batch.items() if paths or name != self.column},
            "vector": vectors,
            "error": np.array([row.error or "" for row in rows], dtype=object),
            "embedding_space": np.array([self.embedder.space] * len(rows), dtype=object),
        }

    def close(self) -> None:
        """Close the embedder; the next use opens it again."""
        if self._process != os.getpid():
            self._forget()
        with self._opening:
            if self._embedder is not None:
                self._embedder.close()
                self._embedder = None

    def __getstate__(self) -> dict[str, Any]:
        return {"artifact": self.artifact, "column": self.column, "settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["artifact"], column=state["column"], **state["settings"])  # type: ignore[misc]


def embed_rows(embedder: Embedder, images: Iterable[tuple[str, Source | ImageError] | NewBatch]) -> Iterator[Row]:
    """Yield a row per named image, in order; an image given as an error yields a row with that error.

    `NEW_BATCH` between images starts a new batch, as in `Embedder.stream`.

    Raises:
        EngineError: a run failed, or the embedder is closed.

    """
    names: deque[str] = deque()

    def sources() -> Iterator[Source | ImageError | NewBatch]:
        for named in images:
            if isinstance(named, NewBatch):
                yield named
            else:
                names.append(named[0])
                yield named[1]

    for result in embedder.stream(sources()):
        path = names.popleft()
        reason = None if result.error is None else result.error.removeprefix(f"{describe(result.source)}: ")
        yield Row(path, result.vector, None if reason is None else f"{path}: {as_text(reason)}")


def _name(image: object, row: int) -> str:
    return as_text(image) if isinstance(image, str | Path) else f"row {row}"
