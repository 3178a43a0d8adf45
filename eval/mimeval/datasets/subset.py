"""Sample images of a data set with balanced classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mimeval.datasets.dataset import Dataset, Relevance, Split
from mimeval.errors import DataError

_GALLERY_WHOLE = "--train-limit is ignored: this is a retrieval, and the gallery is always complete"


def limited(dataset: Dataset, limit: int | None, train_limit: int | None, seed: int) -> Dataset:
    """Return at most `limit` test images and `train_limit` training images; None means all.

    In a retrieval, `limit` samples queries and the gallery stays complete, because average precision depends on the size of
    the gallery; a note says that `train_limit` is ignored. If test images search each other, complete classes are sampled
    up to `limit` images.

    Raises:
        DataError: `limit` is smaller than two classes.

    """
    if limit is None and train_limit is None:
        return dataset
    if dataset.relevance:
        queries = _limited_queries(dataset, limit, seed)
        return queries if train_limit is None else queries.with_notes(_GALLERY_WHOLE)
    train = None if dataset.train is None else _at_most(dataset.train, train_limit, seed)
    return replace(dataset, test=_at_most(dataset.test, limit, seed), train=train)


def balanced(split: Split, count: int, seed: int) -> np.ndarray:
    """Return `count` rows in ascending order with class sizes that differ by at most one, as far as possible.

    With the same seed, the rows of a larger `count` include those of a smaller one.
    """
    return np.asarray(np.sort(balanced_order(split, seed)[:count]))


def balanced_order(split: Split, seed: int) -> np.ndarray:
    """Return all rows in an order in which every prefix has balanced classes."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(split))
    # `turn` is the position of each image within its class; sort by it, so the first images of all classes come first.
    labels = split.labels[order]
    by_class = np.argsort(labels, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(labels[by_class])) + 1]
    sizes = np.diff(np.r_[starts, len(labels)])
    turn = np.empty(len(labels), np.int64)
    turn[by_class] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return np.asarray(order[np.argsort(turn, kind="stable")])


def _at_most(split: Split, count: int | None, seed: int) -> Split:
    return split if count is None or count >= len(split) else split.take(balanced(split, count, seed))


def _limited_queries(dataset: Dataset, limit: int | None, seed: int) -> Dataset:
    if limit is None or limit >= len(dataset.test):
        return dataset
    if dataset.train is None:
        return _whole_classes(dataset, limit, seed)
    rows = balanced(dataset.test, limit, seed)
    return replace(
        dataset,
        test=dataset.test.take(rows),
        relevance={name: _at(relevance, rows, None) for name, relevance in dataset.relevance.items()},
    )


def _whole_classes(dataset: Dataset, limit: int, seed: int) -> Dataset:
    labels = dataset.test.labels
    drawn = np.random.default_rng(seed).permutation(len(dataset.classes))
    sizes = np.bincount(labels, minlength=len(dataset.classes))[drawn]
    kept = drawn[np.cumsum(sizes) <= limit]
    if len(kept) < 2:
        raise DataError(f"--limit {limit} is less than two classes of {dataset.name}; use a larger limit")
    rows = np.flatnonzero(np.isin(labels, kept))
    return replace(
        dataset,
        test=dataset.test.take(rows),
        relevance={name: _at(relevance, rows, rows) for name, relevance in dataset.relevance.items()},
    )


def _at(relevance: Relevance, queries: np.ndarray, gallery: np.ndarray | None) -> Relevance:
    """Return the relevance of the images at `queries`, in a gallery of the rows `gallery` (None: all)."""
    kept = np.flatnonzero(np.isin(relevance.queries, queries))

    def moved(rows: np.ndarray) -> np.ndarray:
        return rows if gallery is None else np.searchsorted(gallery, rows[np.isin(rows, gallery)])

    return replace(
        relevance,
        queries=np.searchsorted(queries, relevance.queries[kept]),
        matches=tuple(moved(relevance.matches[row]) for row in kept),
        ignored=tuple(moved(relevance.ignored[row]) for row in kept),
    )
