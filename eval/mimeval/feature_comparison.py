"""Several features of the same images, each scored and compared with the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mimeval.metrics import METRICS, Task, TrainingSet
from mimeval.statistics import Interval, mean_interval, paired_difference

_SCORES = {"k-NN": METRICS["knn"], "linear probe": METRICS["linear"]}
"""Score that is compared to the metric that yields it."""


@dataclass(frozen=True, slots=True)
class FeatureScore:
    """How well one kind of features did by one score.

    Attributes:
        score: its name.
        features: their name.
        accuracy: share of images that got the right label.
        difference: to the first features, paired over images; None for the first themselves.
    """

    score: str
    features: str
    accuracy: Interval
    difference: Interval | None


def compare_features(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]], train_labels: np.ndarray, test_labels: np.ndarray
) -> Iterator[FeatureScore]:
    """Yield every score of all features.

    Args:
        features: by name, the training (n, D) and test (m, D) features; the first is what the others are compared with.
        train_labels: (n,) integers.
        test_labels: (m,) integers.

    Raises:
        FeaturesError: features or labels that do not belong together.
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
