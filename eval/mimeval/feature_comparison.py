"""Score several kinds of features of the same images, and compare each with the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mimeval.metrics import METRICS, Task, TrainingSet
from mimeval.statistics import Interval, mean_interval, paired_difference

_SCORES = {"k-NN": METRICS["knn"], "linear probe": METRICS["linear"]}
"""The metric of each compared score."""


@dataclass(frozen=True, slots=True)
class FeatureScore:
    """Result of one kind of features by one score.

    Attributes:
        score: name of the score.
        features: name of the features.
        accuracy: share of correctly classified images.
        difference: paired difference to the first features; None for the first.
    """

    score: str
    features: str
    accuracy: Interval
    difference: Interval | None


def compare_features(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]], train_labels: np.ndarray, test_labels: np.ndarray
) -> Iterator[FeatureScore]:
    """Yield the scores of all features.

    Args:
        features: training (n, D) and test (m, D) features by name; the others are compared with the first.
        train_labels: (n,) integers.
        test_labels: (m,) integers.

    Raises:
        FeaturesError: features or labels do not fit together.
    """
    task = Task(test_labels, {})
    for score, metric in _SCORES.items():
        right = {
            name: metric.score(task, TrainingSet(train, train_labels), None, test)[score]
            for name, (train, test) in features.items()
        }
        first = next(iter(right))
        for name, values in right.items():
            difference = None if name == first else paired_difference(values, right[first])
            yield FeatureScore(score, name, mean_interval(values), difference)
