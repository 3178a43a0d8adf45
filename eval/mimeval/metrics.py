"""The table of metrics: how features are scored, one number an image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mimeval import few_shot, knn, linear_probe, retrieval
from mimeval.checks import check_features
from mimeval.datasets import Dataset, Relevance
from mimeval.datasets.dataset import others_of_class
from mimeval.errors import DataError
from mimruntime.errors import OptionError, UnknownNameError

Scores = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What is to be found out about test images.

    Attributes:
        test_labels: int64 (m,).
        relevance: by protocol, what queries ought to find; where it is empty, images find the others of their class.

    """

    test_labels: np.ndarray
    relevance: Mapping[str, Relevance]


@dataclass(frozen=True, eq=False)
class Known:
    """Training images, none where a data set has none; a probe is fitted once, however many engines are judged by it.

    Attributes:
        features: float32 (n, D).
        labels: int64 (n,).

    """

    features: np.ndarray
    labels: np.ndarray

    @cached_property
    def probe(self) -> linear_probe.Probe:
        """The linear probe of these images."""
        return linear_probe.fit(self.features, self.labels)


Metric = Callable[[Task, Known, np.ndarray | None, np.ndarray], Scores]
"""(task, what is learned from, features that are searched, test features) -> scores by name."""


def _knn(task: Task, known: Known, _: np.ndarray | None, test: np.ndarray) -> Scores:
    labels, cosines = knn.find(known.features, known.labels, test)
    return {"k-NN": knn.vote(labels, cosines) == task.test_labels, "1-NN": labels[:, 0] == task.test_labels}


def _linear(task: Task, known: Known, _: np.ndarray | None, test: np.ndarray) -> Scores:
    check_features(known.features, test)
    return {"linear probe": known.probe.predict(test) == task.test_labels}


def _few_shot(task: Task, known: Known, _: np.ndarray | None, test: np.ndarray) -> Scores:
    predicted = few_shot.predict(known.features, known.labels, test)
    return {f"{few_shot.SHOTS}-shot": (predicted == task.test_labels).mean(axis=0)}


def _retrieval(task: Task, _: Known, gallery: np.ndarray | None, test: np.ndarray) -> Scores:
    searched = test if gallery is None else gallery
    scores: Scores = {}
    for protocol, relevance in (task.relevance or {"": others_of_class(task.test_labels)}).items():
        if not len(relevance.queries):  # a few images of many classes: nobody has anyone to find
            continue
        found = retrieval.retrieve(
            test[relevance.queries], searched, relevance.matches, relevance.ignored, trapezoid=relevance.trapezoid
        )
        suffix = f" {protocol}" if protocol else ""
        scores[f"mAP{suffix}"] = found.average_precision
        scores |= {f"recall@{k}{suffix}": hits for k, hits in found.found.items()}
    return scores


METRICS: dict[str, Metric] = {"knn": _knn, "linear": _linear, "few-shot": _few_shot, "retrieval": _retrieval}
"""Name on the command line to the metric."""

DECISIVE = ("k-NN", "mAP", "mAP medium")
"""The verdict rests on the first of these that is measured; the others are shown."""


def suited(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of all metrics that `dataset` has what they need for."""
    if dataset.relevance or dataset.train is None:
        return ("retrieval",)
    unfit = {"few-shot"} if not has_shots(dataset.train.labels) else set()
    if len(np.unique(dataset.train.labels)) < 2:
        unfit.add("linear")
    return tuple(name for name in METRICS if name not in unfit)


def has_shots(labels: np.ndarray) -> bool:
    """Return whether every class among `labels` has enough images for few-shot classification."""
    counts = np.bincount(labels)
    return bool(counts[counts > 0].min() >= few_shot.SHOTS)


def find_metrics(names: tuple[str, ...], dataset: Dataset) -> dict[str, Metric]:
    """Return the metrics called `names`, or all that `dataset` has what they need for.

    Raises:
        UnknownNameError: no such metric.
        OptionError: one that learns from training images, and there are none.

    """
    names = names or suited(dataset)
    for name in names:
        if name not in METRICS:
            raise UnknownNameError("metric", name, METRICS)
        if name != "retrieval" and dataset.train is None:
            raise OptionError(
                f"{name} learns from training images, and {dataset.name} has none; use --metric retrieval"
            )
    return {name: METRICS[name] for name in names}


def check_measured(names: Collection[str], dataset: Dataset) -> None:
    """Refuse an evaluation in which no metric gave a score.

    Raises:
        DataError: `names` of scores are none.

    """
    if not names:
        raise DataError(
            f"{dataset.name}: nothing could be measured, no image has another one to find; take more images"
        )
