"""The images of one evaluation: their order, unreadable ones, and the task of the others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mimeval.datasets import Dataset, Relevance
from mimeval.datasets.dataset import digest_of
from mimeval.datasets.subset import balanced_order
from mimeval.errors import DataError
from mimeval.feature_store import FeatureStore, Table
from mimeval.metrics import Metric, Task, TrainingSet
from mimruntime.embedder import Embedder

Jobs = list[tuple[Embedder, str]]
_SHOWN = 3
"""Number of unreadable images to name."""


@dataclass(slots=True, eq=False)
class Images:
    """The images of an evaluation.

    Attributes:
        dataset: the data set.
        order: int64 (m,), rows of test images; every prefix has balanced classes.
        deployed: number of test images that engines see, from the start of `order`.
        bad_test: bool (m,), whether an image of `order` could not be read.
        bad_train: bool (n,), whether a training image could not be read.
        notes: notes for the reader.

    """

    dataset: Dataset
    order: np.ndarray
    deployed: int
    bad_test: np.ndarray
    bad_train: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Digest of the readable images that engines see, in order, and of the readable training images."""
        learned = "" if self.dataset.train is None else self.dataset.train.digest
        left_out = self.train_rows().tobytes() if self.bad_train.any() else b""
        seen = self.order[self.test_rows(deployed=True)]
        return digest_of(self.dataset.test.digest, learned, seen.tobytes(), *([left_out] if left_out else []))

    @property
    def searches_train(self) -> bool:
        """Whether queries search the training images instead of each other."""
        return bool(self.dataset.relevance) and self.dataset.train is not None

    @property
    def training(self) -> int:
        """Number of readable training or gallery images."""
        return int((~self.bad_train).sum())

    def test_rows(self, *, deployed: bool) -> np.ndarray:
        """Return the rows of readable images in test tables."""
        return np.flatnonzero(~self.bad_test[: self.deployed] if deployed else ~self.bad_test)

    def train_rows(self) -> np.ndarray:
        """Return the rows of readable images in training tables."""
        return np.flatnonzero(~self.bad_train)

    def names(self) -> list[str]:
        """Return the names of all readable test images, in the order of scores."""
        return [self.dataset.test.names[row] for row in self.order[self.test_rows(deployed=False)]]

    def task(self, rows: np.ndarray) -> Task:
        """Return the task for `rows` of a test table."""
        return Task(
            test_labels=self.dataset.test.labels[self.order[rows]],
            relevance={name: self._readable(relevance) for name, relevance in self.dataset.relevance.items()},
        )

    def known(self, train: Table | None) -> TrainingSet:
        """Return the training set from a table of the training images; empty without one."""
        if train is None or self.dataset.train is None:
            return TrainingSet(np.empty((0, 0), np.float32), np.empty(0, np.int64))
        rows = self.train_rows()
        return TrainingSet(train.embedding[rows], self.dataset.train.labels[rows])

    def weights(self, metric: Metric) -> np.ndarray:
        """Return the weights of torch's scores by `metric` for the comparison with `chance`, (n,) or (1,).

        If classes count equally, always predicting the largest class scores no better than guessing.
        """
        if not metric.classes_alike:
            return np.ones(1)
        labels = self._labels()
        counts = np.bincount(labels).astype(np.float64)
        weights: np.ndarray = len(labels) / (np.count_nonzero(counts) * counts[labels])
        return weights

    def chance(self, metric: Metric, score: str) -> float:
        """Return the mean score that guessing reaches."""
        rows = self.test_rows(deployed=True)
        learned = self._labels() if self.dataset.train is None else self.dataset.train.labels[self.train_rows()]
        return metric.chance(self.task(rows), learned, self.training if self.searches_train else len(rows), score)

    def _labels(self) -> np.ndarray:
        labels: np.ndarray = self.dataset.test.labels[self.order[self.test_rows(deployed=False)]]
        return labels

    def test_tables(self, store: FeatureStore, jobs: Jobs, label: str, *, deployed: bool = False) -> list[Table]:
        """Return features of all test images, or only of those that engines see."""
        rows = self.order[: self.deployed] if deployed else self.order
        # The identity includes the order but not the number of rows, so that a table can grow.
        data = f"{self.dataset.test.digest} in the order {digest_of(self.order.tobytes())}"
        return store.tables(
            [(embedder, f"{text} {data}") for embedder, text in jobs], self.dataset.test, rows, f"{label}, test"
        )

    def train_tables(self, store: FeatureStore, jobs: Jobs, label: str) -> list[Table | None]:
        """Return features of the training images; None without training images."""
        train = self.dataset.train
        if train is None:
            return [None] * len(jobs)
        named = [(embedder, f"{text} {train.digest}") for embedder, text in jobs]
        return list(store.tables(named, train, np.arange(len(train)), f"{label}, training"))

    def drop_unsuited(self, metrics: dict[str, Metric], asked: tuple[str, ...]) -> None:
        """Remove metrics that too few readable images allow, unless metrics were requested; add a note."""
        train = self.dataset.train
        if train is None or asked:
            return
        labels = train.labels[self.train_rows()]
        for name in [name for name, metric in metrics.items() if metric.refusal(labels)]:
            fewest = min(np.unique(labels), key=lambda label: int((labels == label).sum()))
            del metrics[name]
            self.notes.append(f"{name} is left out: too few images of '{self.dataset.classes[fewest]}' are readable")

    def drop_unreadable(self, test: Table, train: Table | None) -> None:
        """Exclude images that could not be read, and add a note.

        Raises:
            DataError: no image is left.

        """
        for table, bad, name in ((test, self.bad_test, "test"), (train, self.bad_train, "training")):
            if table is None or not table.errors:
                continue
            bad[list(table.errors)] = True
            first = "; ".join(list(table.errors.values())[:_SHOWN])
            note = f"{len(table.errors)} of {len(bad)} {name} images could not be read and are left out: {first}"
            if bad.all():
                raise DataError(f"{self.dataset.name}: {note}")
            if note not in self.notes:
                self.notes.append(note)

    def _readable(self, relevance: Relevance) -> Relevance:
        """Return `relevance` with rows counted among readable images; queries without matches are dropped."""
        bad_gallery = self.bad_train if self.dataset.train is not None else self.bad_test
        if not (self.bad_test.any() or bad_gallery.any()):
            return relevance
        place = np.cumsum(~bad_gallery) - 1
        queries, matches, ignored = [], [], []
        for query, right, junk in zip(relevance.queries, relevance.matches, relevance.ignored, strict=True):
            left = right[~bad_gallery[right]]
            if len(left) and not self.bad_test[query]:
                queries.append(int((~self.bad_test[:query]).sum()))
                matches.append(place[left])
                ignored.append(place[junk[~bad_gallery[junk]]])
        return replace(relevance, queries=np.array(queries, np.int64), matches=tuple(matches), ignored=tuple(ignored))


def choose_images(dataset: Dataset, deployed: int | None, *, seed: int) -> Images:
    """Return the images of `dataset`; engines see the first `deployed` of them.

    Raises:
        DataError: there are no test images, or `deployed` is given for a retrieval, which needs all images.

    """
    count = len(dataset.test)
    if not count or (dataset.train is not None and not len(dataset.train)):
        raise DataError(f"{dataset.name} has {count} test and {len(dataset.train or ())} training images; add some")
    if dataset.relevance and deployed is not None:
        raise DataError(f"{dataset.name} is a retrieval, and engines must see all of its images; leave --deployed out")
    order = np.arange(count) if dataset.relevance else balanced_order(dataset.test, seed)
    notes = []
    if dataset.train is not None and not dataset.relevance:
        unknown = np.setdiff1d(dataset.test.labels, dataset.train.labels)
        if len(unknown):
            named = ", ".join(dataset.classes[label] for label in unknown[:_SHOWN])
            notes.append(
                f"{len(unknown)} classes have test images but no training images ({named}), so these are never right"
            )
    training = 0 if dataset.train is None else len(dataset.train)
    return Images(dataset, order, min(deployed or count, count), np.zeros(count, bool), np.zeros(training, bool), notes)
