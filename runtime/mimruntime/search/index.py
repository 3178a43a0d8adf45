"""A FAISS index of unit vectors by image number, searchable while it grows: flat, and IVF for many vectors."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import msgspec
import numpy as np

from mimruntime import records
from mimruntime.errors import OutputError
from mimruntime.writing import staged_file, write_file

FLAT_MOST = 200_000
"""Largest size of a flat index: docs/results/page.md."""
PROBED = 16
"""An IVF search reads the number of lists divided by this: docs/results/page.md."""
_BLOCK = 1 << 16
"""Vectors that are copied at a time, so that building needs little more than both indexes."""
_TRAINED_ON = 64
"""Training vectors of k-means per list."""
FORMAT, SCHEMA = "mimexport-index", 2


class _About(msgspec.Struct, frozen=True, kw_only=True):
    """`index.json`: identifies the vectors in `index.faiss` and their order, by a digest."""

    format: str = FORMAT
    schema: int = SCHEMA
    vectors: str


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Images by similarity, nearest first.

    Attributes:
        numbers: image numbers, int64 (n,).
        cosines: cosines to the query, float32 (n,).

    """

    numbers: np.ndarray
    cosines: np.ndarray


class Index:
    """Find the nearest vectors; thread-safe.

    Args:
        dim: length of a vector.
        capacity: image numbers are below it.
        flat_most: with more vectors than this, `settle` builds an IVF index.

    """

    def __init__(self, dim: int, capacity: int, *, flat_most: int = FLAT_MOST) -> None:
        self.dim = dim
        self._faiss: faiss.Index = faiss.IndexFlatIP(dim)
        self._flat_most = flat_most
        self._numbers = np.empty(capacity, np.int64)
        self._rows = np.full(capacity, -1, np.int64)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._faiss.ntotal)

    def __contains__(self, number: int) -> bool:
        return 0 <= number < len(self._rows) and bool(self._rows[number] >= 0)

    @property
    def kind(self) -> str:
        """The kind of index: "flat" compares a query with all vectors, "IVF" with those of some lists."""
        return "flat" if isinstance(self._faiss, faiss.IndexFlat) else "IVF"

    def add(self, numbers: Sequence[int], vectors: np.ndarray) -> None:
        """Add unit vectors, float32 (n, D), of images that are not in the index."""
        with self._lock:
            start = self._faiss.ntotal
            self._faiss.add(np.ascontiguousarray(vectors, np.float32))
            self._numbers[start : start + len(numbers)] = numbers
            self._rows[np.asarray(numbers, np.int64)] = np.arange(start, start + len(numbers))

    def vector(self, number: int) -> np.ndarray:
        """Return the vector, float32 (D,), of an image that is in the index."""
        with self._lock:
            return np.asarray(self._faiss.reconstruct(int(self._rows[number])))

    def known(self) -> np.ndarray:
        """Return the numbers of all images in the index, int64 (n,)."""
        with self._lock:
            return self._numbers[: len(self)].copy()

    def search(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers int64 and cosines float32, (q, k) with k = min(count, len(self)), nearest first.

        An IVF index may find fewer; the missing numbers are -1.
        """
        with self._lock:
            found = min(count, self._faiss.ntotal)
            if not found:
                empty = (len(queries), 0)
                return np.empty(empty, np.int64), np.empty(empty, np.float32)
            cosines, rows = self._faiss.search(np.ascontiguousarray(queries, np.float32), found)
            return np.where(rows < 0, -1, self._numbers[rows]), cosines

    def nearest(self, query: np.ndarray, count: int, *, without: int | None = None) -> Neighbours:
        """Return the `count` nearest images to one vector, float32 (D,), except the image `without`, which is the query."""
        # In this thread: for one query, several threads would wait for each other longer than they compute.
        faiss.omp_set_num_threads(1)
        numbers, cosines = (found[0] for found in self.search(query[None], count + (without is not None)))
        kept = (numbers >= 0) & (numbers != (-1 if without is None else without))
        return Neighbours(numbers[kept][:count], cosines[kept][:count])

    def settle(self, folder: Path) -> None:
        """Build an IVF index if there are many vectors: read it from `folder`, or train it and store it there.

        Raises:
            OutputError: the index cannot be written.

        """
        if len(self) <= self._flat_most or self.kind != "flat":
            return
        # By image number: the order of embedding differs from run to run.
        numbers = np.sort(self._numbers[: len(self)])
        order = self._rows[numbers]
        about = _About(vectors=self._digest(order))
        lists = _read(folder, about)
        if lists is None:
            lists = self._sorted_into_lists(order)
            _write(folder, about, lists)
        lists.nprobe = max(1, lists.nlist // PROBED)
        lists.make_direct_map()
        with self._lock:
            self._faiss = lists
            self._numbers[: len(numbers)] = numbers
            self._rows[numbers] = np.arange(len(numbers))

    def _sorted_into_lists(self, order: np.ndarray) -> faiss.IndexIVFFlat:
        number_of_lists = lists_for(len(order))
        lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.dim), self.dim, number_of_lists, faiss.METRIC_INNER_PRODUCT)
        seen = np.random.default_rng(0).permutation(order)[: _TRAINED_ON * number_of_lists]
        lists.cp.max_points_per_centroid = _TRAINED_ON
        lists.train(self._faiss.reconstruct_batch(seen))
        for block in self._blocks(order):
            lists.add(block)
        return lists

    def _digest(self, order: np.ndarray) -> str:
        digest = hashlib.sha256(b"%d\0" % self.dim)
        for block in self._blocks(order):
            digest.update(block.data)
        return digest.hexdigest()

    def _blocks(self, order: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(order), _BLOCK):
            yield self._faiss.reconstruct_batch(order[start : start + _BLOCK])


def lists_for(count: int) -> int:
    """Return into how many lists an IVF index sorts so many vectors."""
    return int(4 * np.sqrt(count))


def _read(folder: Path, wanted: _About) -> faiss.IndexIVFFlat | None:
    """Return the index in `folder` if it is of these vectors in this order; else None."""
    try:
        about = records.decode((folder / "index.json").read_bytes(), _About, format_name=FORMAT, schema=SCHEMA)
        if about != wanted:
            return None
        with (folder / "index.faiss").open("rb") as stream:
            found = faiss.read_index(faiss.PyCallbackIOReader(stream.read))  # type: ignore[attr-defined]  # not in its stubs
    except (OSError, ValueError, RuntimeError, MemoryError):  # missing or damaged: it is built again
        return None
    return found if isinstance(found, faiss.IndexIVFFlat) else None


def _write(folder: Path, about: _About, lists: faiss.IndexIVFFlat) -> None:
    record = folder / "index.json"
    try:
        record.unlink(missing_ok=True)  # so that a new index never has an old record
    except OSError as error:
        raise OutputError(f"cannot replace {record} ({error.strerror}); name another folder: --cache") from error
    with staged_file(folder / "index.faiss") as stream:
        faiss.write_index(lists, faiss.PyCallbackIOWriter(stream.write))  # type: ignore[attr-defined]  # not in its stubs
    write_file(record, msgspec.json.encode(about))
