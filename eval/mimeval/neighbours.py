"""Find the most similar rows of a table by cosine, with limited memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mimeval.accelerator import accelerator

_CHUNK_FLOATS, _CHUNK_QUERIES = 1 << 25, 1024
"""Limits of similarities per chunk (128 MiB) and of queries per chunk, because sorting needs as much memory again."""
_BLOCK = 64
"""Columns that are first represented by their largest similarity."""


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return float32 rows of unit length; rows of zeros stay zero."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def similarities(queries: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the cosines of a few queries at a time to the whole gallery, float32 (chunk, n), and which they are.

    The next chunk overwrites the last one. A gallery in float32 is not copied.

    Args:
        queries: (m, D).
        gallery: (n, D).

    """
    queries, gallery = unit(queries), np.asarray(gallery, np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", gallery, gallery))  # in one pass, where `norm` squares a copy
    lengths[lengths == 0] = 1
    step = max(1, min(_CHUNK_QUERIES, _CHUNK_FLOATS // max(1, len(gallery)), len(queries)))
    chunk = np.empty((step, len(gallery)), np.float32)
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        cosines = chunk[: part.stop - start]
        np.matmul(queries[part], gallery.T, out=cosines)
        cosines /= lengths
        yield part, cosines


def nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, *, leave_one_out: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k most similar rows of `gallery` for each query, most similar first.

    Args:
        queries: (m, D).
        gallery: (n, D).
        k: at most n are returned.
        leave_one_out: the queries are the gallery, and a row is not its own neighbour.

    Returns:
        Indices int64 (m, k) and cosines float32 (m, k); of equal cosines the first row comes first. On a GPU it may
        be any of those equal at the last place.

    """
    if (gpu := accelerator()) is not None:
        return gpu.nearest(queries, gallery, k, leave_one_out=leave_one_out)
    k = min(k, len(gallery) - leave_one_out)
    indices, cosines = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for part, table in similarities(queries, gallery):
        if leave_one_out:
            table[np.arange(len(table)), np.arange(part.start, part.stop)] = -np.inf
        indices[part] = top(table, k)
        cosines[part] = np.take_along_axis(table, indices[part], axis=1)
    return indices, cosines


def overlap(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the share (m,) of the neighbours `wanted` (m, k) that are among those `found` (m, k)."""
    return np.array([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), wanted.tolist(), strict=True)])


def top(table: np.ndarray, k: int) -> np.ndarray:
    """Return the columns of the k largest values of every row, largest first, equal values by column.

    The k largest lie in the k blocks whose maxima are largest, so that only these blocks are searched; a maximum costs
    a tenth of a partition. A block is every n-th column, since the largest of each column of a
    matrix is found faster than of each row.
    """
    rows, columns = table.shape
    blocks = columns // _BLOCK
    if blocks <= 2 * k:
        candidates = np.broadcast_to(np.arange(columns), table.shape)
    else:
        whole = table[:, : blocks * _BLOCK].reshape(rows, _BLOCK, blocks)
        best = np.argpartition(-whole.max(axis=1), k - 1, axis=1)[:, :k]
        inside = (best[:, :, None] + blocks * np.arange(_BLOCK)).reshape(rows, -1)
        rest = np.broadcast_to(np.arange(blocks * _BLOCK, columns), (rows, columns - blocks * _BLOCK))
        candidates = np.concatenate([inside, rest], axis=1)
    values = np.take_along_axis(table, candidates, axis=1)
    chosen = np.argpartition(-values, min(k, values.shape[1]) - 1, axis=1)[:, :k]
    chosen = np.take_along_axis(candidates, chosen, axis=1)
    order = np.lexsort((chosen, -np.take_along_axis(table, chosen, axis=1)))
    return np.take_along_axis(chosen, order, axis=1)
