"""The table of metrics, which score features with one number per image."""

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
    """Ground truth of the test images.

    Attributes:
        test_labels: int64 (m,).
        relevance: ground truth of a retrieval by protocol; if empty, images must find the others of their class.

    """

    test_labels: np.ndarray
    relevance: Mapping[str, Relevance]


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Features of the training images, possibly empty; the probe is fitted once and used for all engines.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A way to score features. To add one, write this record and a line in `METRICS`.

    Attributes:
        score: (task, training set, gallery features, test features) -> scores by name, one number per image.
        chance: (task, training labels, gallery size, name of a score) -> mean score of guessing.
        ranks: whether the score depends on the gallery in addition to the training set.
        needs_training: whether it needs training images.
        decides: names of its scores that a verdict can be based on.
        classes_alike: whether classes count equally when torch's scores are compared with chance.
        refusal: returns why it cannot learn from these labels, or None.

    """

    score: Callable[[Task, TrainingSet, np.ndarray | None, np.ndarray], Scores]
    chance: Callable[[Task, np.ndarray, int, str], float]
    ranks: bool = False
    needs_training: bool = True
    decides: tuple[str, ...] = ()
    classes_alike: bool = True
    refusal: Callable[[np.ndarray], str | None] = lambda _: None


def _knn(task: Task, known: TrainingSet, _: np.ndarray | None, test: np.ndarray) -> Scores:
    labels, cosines = knn.find(known.features, known.labels, test)
    return {"k-NN": knn.vote(labels, cosines) == task.test_labels, "1-NN": labels[:, 0] == task.test_labels}


def _linear(task: Task, known: TrainingSet, _: np.ndarray | None, test: np.ndarray) -> Scores:
    check_features(known.features, test)
    return {"linear probe": known.probe.predict(test) == task.test_labels}


def _few_shot(task: Task, known: TrainingSet, _: np.ndarray | None, test: np.ndarray) -> Scores:
    predicted = few_shot.predict(known.features, known.labels, test)
    return {f"{few_shot.SHOTS}-shot": (predicted == task.test_labels).mean(axis=0)}


def _retrieval(task: Task, _: TrainingSet, gallery: np.ndarray | None, test: np.ndarray) -> Scores:
    searched = test if gallery is None else gallery
    scores: Scores = {}
    for protocol, relevance in (task.relevance or {"": others_of_class(task.test_labels)}).items():
        if not len(relevance.queries):  # few images of many classes: no query has a match
            continue
        found = retrieval.retrieve(
            test[relevance.queries], searched, relevance.matches, relevance.ignored, trapezoid=relevance.trapezoid
        )
        suffix = f" {protocol}" if protocol else ""
        scores[f"mAP{suffix}"] = found.average_precision
        scores |= {f"recall@{k}{suffix}": hits for k, hits in found.found.items()}
    return scores


def _one_of_the_classes(_: Task, learned: np.ndarray, __: int, ___: str) -> float:
    return 1 / len(np.unique(learned))


def _random_ranking(task: Task, _: np.ndarray, searched: int, score: str) -> float:
    relevance = task.relevance.get(score.removeprefix("mAP").strip()) or others_of_class(task.test_labels)
    sizes = zip(map(len, relevance.matches), (searched - len(junk) for junk in relevance.ignored), strict=True)
    return float(np.mean([retrieval.guessed_precision(right, among) for right, among in sizes]))


def _one_class(labels: np.ndarray) -> str | None:
    return "only one class" if len(np.unique(labels)) < 2 else None


def _few_shots(labels: np.ndarray) -> str | None:
    counts = np.bincount(labels)
    return f"fewer than {few_shot.SHOTS} images of a class" if counts[counts > 0].min() < few_shot.SHOTS else None


METRICS: dict[str, Metric] = {
    "knn": Metric(score=_knn, chance=_one_of_the_classes, decides=("k-NN",)),
    "linear": Metric(score=_linear, chance=_one_of_the_classes, refusal=_one_class),
    "few-shot": Metric(score=_few_shot, chance=_one_of_the_classes, refusal=_few_shots),
    "retrieval": Metric(
        score=_retrieval,
        chance=_random_ranking,
        ranks=True,
        needs_training=False,
        decides=("mAP", "mAP medium"),
        classes_alike=False,
    ),
}
"""The metrics by name on the command line; the verdict is based on the first measured one with `decides`."""


def suited(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of all metrics that can be measured on `dataset`."""
    if dataset.relevance or dataset.train is None:
        return tuple(name for name, metric in METRICS.items() if not metric.needs_training)
    labels = dataset.train.labels
    return tuple(name for name, metric in METRICS.items() if metric.refusal(labels) is None)


def find_metrics(names: tuple[str, ...], dataset: Dataset) -> dict[str, Metric]:
    """Return the metrics called `names`, or all that can be measured on `dataset`.

    Raises:
        UnknownNameError: there is no such metric.
        OptionError: a metric needs training images, but there are none.

    """
    names = names or suited(dataset)
    for name in names:
        if name not in METRICS:
            raise UnknownNameError("metric", name, METRICS)
        if METRICS[name].needs_training and dataset.train is None:
            free = ", ".join(other for other, metric in METRICS.items() if not metric.needs_training)
            raise OptionError(f"{name} learns from training images, and {dataset.name} has none; use --metric {free}")
    return {name: METRICS[name] for name in names}


def decisive(scores: Collection[str], metrics: Mapping[str, Metric]) -> tuple[str, Metric]:
    """Return the name of the score that the verdict is based on, and its metric.

    Args:
        scores: names of all measured scores, at least one.
        metrics: the measured metrics, by name.

    """
    deciding = [(name, metric) for metric in METRICS.values() for name in metric.decides if name in scores]
    return deciding[0] if deciding else (min(scores), next(iter(metrics.values())))


def check_measured(names: Collection[str], dataset: Dataset) -> None:
    """Raise DataError if no metric gave a score.

    Raises:
        DataError: `names` of scores is empty.

    """
    if not names:
        raise DataError(f"{dataset.name}: nothing could be measured, because no image has a match; use more images")
