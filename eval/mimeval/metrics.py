"""The table of metrics: how features are scored, one number an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mimeval import few_shot, knn, linear_probe, retrieval
from mimeval.datasets import Dataset, Relevance
from mimruntime.errors import OptionError, UnknownNameError

Scores = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What is to be found out about test images.

    Attributes:
        train_labels: int64 (n,) of the images that are learned from; None where there are none.
        test_labels: int64 (m,).
        relevance: by protocol, what queries ought to find; where it is empty, images find the others of their class.

    """

    train_labels: np.ndarray | None
    test_labels: np.ndarray
    relevance: Mapping[str, Relevance]


Metric = Callable[[Task, np.ndarray | None, np.ndarray | None, np.ndarray], Scores]
"""(task, training features or None, features that are searched, test features) -> scores by name."""


def _knn(task: Task, train: np.ndarray | None, _: np.ndarray | None, test: np.ndarray) -> Scores:
    known, labels = _labelled(task, train, "k-NN")
    return {
        "k-NN": knn.predict(known, labels, test) == task.test_labels,
        "1-NN": knn.predict(known, labels, test, k=1) == task.test_labels,
    }


def _linear(task: Task, train: np.ndarray | None, _: np.ndarray | None, test: np.ndarray) -> Scores:
    known, labels = _labelled(task, train, "linear probe")
    return {"linear probe": linear_probe.predict(known, labels, test) == task.test_labels}


def _few_shot(task: Task, train: np.ndarray | None, _: np.ndarray | None, test: np.ndarray) -> Scores:
    known, labels = _labelled(task, train, "few-shot")
    predicted = few_shot.predict(known, labels, test)
    return {f"{few_shot.SHOTS}-shot": (predicted == task.test_labels).mean(axis=0)}


def _retrieval(task: Task, _: np.ndarray | None, gallery: np.ndarray | None, test: np.ndarray) -> Scores:
    searched = test if gallery is None else gallery
    scores: Scores = {}
    for protocol, relevance in (task.relevance or {"": by_label(task)}).items():
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

DECISIVE = ("k-NN", "mAP")
"""The verdict rests on the first of these that is measured; the others are shown."""


def suited(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of all metrics that `dataset` has what they need for."""
    if dataset.relevance or dataset.train is None:
        return ("retrieval",)
    fewest = np.bincount(dataset.train.labels, minlength=1)
    few = fewest[fewest > 0].min() < few_shot.SHOTS
    return tuple(name for name in METRICS if not (few and name == "few-shot"))


def find_metrics(names: tuple[str, ...]) -> dict[str, Metric]:
    """Return the metrics called `names`.

    Raises:
        UnknownNameError: no such metric.

    """
    for name in names:
        if name not in METRICS:
            raise UnknownNameError("metric", name, METRICS)
    return {name: METRICS[name] for name in names}


def _labelled(task: Task, train: np.ndarray | None, metric: str) -> tuple[np.ndarray, np.ndarray]:
    if train is None or task.train_labels is None or not len(task.train_labels):
        raise OptionError(f"{metric} learns from training images, and this data set has none; use --metric retrieval")
    return train, task.train_labels


def by_label(task: Task) -> Relevance:
    """Return that a test image ought to find the others of its class; those that are alone ask nothing."""
    labels = task.test_labels
    rows = np.arange(len(labels))
    members = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    asking = np.array([row for row in rows if len(members[labels[row]]) > 1], np.int64)
    matches = tuple(members[labels[row]][members[labels[row]] != row] for row in asking)
    return Relevance(asking, matches, tuple(asking[:, None]))
