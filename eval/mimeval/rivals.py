"""Several ways to describe the same images, judged side by side against the first of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mimeval import knn, linear_probe
from mimeval.statistics import Interval, mean_interval, paired_difference

EVALUATORS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "k-NN": knn.predict,
    "linear probe": linear_probe.predict,
}


@dataclass(frozen=True, slots=True)
class Standing:
    """How one of the rivals did.

    Attributes:
        method: a name in `EVALUATORS`.
        rival: its name.
        accuracy: share of images that got the right label.
        difference: to the first rival, paired over images; None for the first itself.
    """

    method: str
    rival: str
    accuracy: Interval
    difference: Interval | None


def judge(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]], train_labels: np.ndarray, test_labels: np.ndarray
) -> Iterator[Standing]:
    """Yield how every rival stands, by every method.

    Args:
        features: by name, the training (n, D) and test (m, D) features; the first is what the others are compared with.
        train_labels: (n,) integers.
        test_labels: (m,) integers.

    Raises:
        FeaturesError: features or labels that do not belong together.
    """
    for method, predict in EVALUATORS.items():
        right = {name: predict(train, train_labels, test) == test_labels for name, (train, test) in features.items()}
        first = next(iter(right))
        for name, values in right.items():
            difference = None if name == first else paired_difference(values, right[first])
            yield Standing(method, name, mean_interval(values), difference)
