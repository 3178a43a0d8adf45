"""Simulate indexes that store fewer bits per vector or compare in TF32, to measure the loss of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from mimeval import knn
from mimeval.neighbours import nearest, top, unit
from mimruntime.storage import Codec, Store, codec_of, measure_statistics

OVERSAMPLING = 10
"""Number of candidates from bits per requested neighbour."""
_QUERIES = 512
"""Number of queries per chunk of the rescoring."""

WAYS = {"fp16": "fp16", "int8": "int8", "bits": "bits", "rescored": "bits, rescored by int8", "tf32": "TF32"}
"""Names of what an evaluation is asked for, and of the searches."""
_STATISTICS = 256
"""Most training images that mean and scale are measured on."""

Search = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(queries (m, D), gallery (n, D), k) -> indices int64 (m, k) and similarities float32 (m, k), largest first."""


def searches(codecs: dict[str, Codec]) -> dict[str, Search]:
    """Return all search functions by their names in tables.

    Queries stay in float32, except in the comparison of bits, whose similarity is 1 - 2 · (different bits) / D.

    Args:
        codecs: codecs "fp16", "int8" and "bits" for the vectors' dimension.

    """
    fp16, int8, bits = codecs["fp16"], codecs["int8"], codecs["bits"]
    return {
        "fp32": nearest,
        "fp16": lambda queries, gallery, k: nearest(queries, _stored(fp16, gallery), k),
        "int8": lambda queries, gallery, k: nearest(queries, _stored(int8, gallery), k),
        "bits": lambda queries, gallery, k: nearest(_signs(bits, queries), _signs(bits, gallery), k),
        "bits, rescored": lambda *asked: _rescore(bits, bits, *asked),
        "bits, rescored by int8": lambda *asked: _rescore(bits, int8, *asked),
        "TF32": _in_tf32,
    }


def k_nn_correct(
    ways: Collection[str], train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray
) -> dict[str, np.ndarray]:
    """Return which test images k-NN gets right where the training vectors are stored so, bool (m,), by way.

    Args:
        ways: names in `WAYS`.
        train: vectors (n, D) that are stored.
        labels: theirs, (n,) integers.
        test: vectors (m, D) that search, in float32.
        truth: their labels.

    """
    # Evenly spaced as a build takes its images: training images are sorted by class, and the first are of few classes.
    chosen = np.linspace(0, len(train) - 1, min(_STATISTICS, len(train))).astype(int)
    statistics = measure_statistics(unit(train[chosen]))
    stores: tuple[Store, ...] = ("fp16", "int8", "bits")
    known = searches({store: codec_of(statistics, store, train.shape[1], "") for store in stores})
    found = {way: known[WAYS[way]](test, train, min(knn.K, len(train))) for way in ways}
    return {way: knn.vote(labels[indices], cosines) == truth for way, (indices, cosines) in found.items()}


def round_tf32(values: np.ndarray) -> np.ndarray:
    """Return float32 rounded to the ten bits of TF32's mantissa, ties to even, as a GPU's tensor cores read their inputs."""
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((raw + np.uint32(0xFFF) + ((raw >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def _stored(codec: Codec, vectors: np.ndarray) -> np.ndarray:
    return codec.decode(codec.encode(unit(vectors)))


def _signs(codec: Codec, vectors: np.ndarray) -> np.ndarray:
    """Return the bits as +1 and -1; their cosine has the same order as the number of equal bits."""
    return np.unpackbits(codec.encode(unit(vectors)), axis=1, count=codec.dim).astype(np.float32) * 2 - 1


def _rescore(bits: Codec, by: Codec, queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find candidates by bits, and rank them by the cosine of the float32 query with their form stored by `by`."""
    candidates, _ = nearest(_signs(bits, queries), _signs(bits, gallery), OVERSAMPLING * k)
    read, asked = _stored(by, gallery), unit(queries)
    indices, cosines = [], []
    for start in range(0, len(asked), _QUERIES):
        part = candidates[start : start + _QUERIES]
        order, found = _largest(np.einsum("md,mkd->mk", asked[start : start + _QUERIES], read[part]), k)
        indices.append(np.take_along_axis(part, order, axis=1))
        cosines.append(found)
    return np.concatenate(indices), np.concatenate(cosines)


def _in_tf32(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    asked, stored = round_tf32(unit(queries)), round_tf32(unit(gallery))
    found = [_largest(asked[start : start + _QUERIES] @ stored.T, k) for start in range(0, len(asked), _QUERIES)]
    return np.concatenate([order for order, _ in found]), np.concatenate([cosines for _, cosines in found])


def _largest(table: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = top(table, k)
    return order, np.take_along_axis(table, order, axis=1)
