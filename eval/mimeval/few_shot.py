"""Few-shot classification by the nearest class mean, averaged over draws of the shots.

Class means of unit features compared by cosine: the simplest prototype classifier (Snell et al., NeurIPS 2017), which
has nothing to tune on a handful of images.
"""

from __future__ import annotations

import numpy as np

from mimeval.checks import check_features
from mimeval.errors import FeaturesError
from mimeval.neighbours import unit

SHOTS, DRAWS = 5, 20


def predict(
    train: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    shots: int = SHOTS,
    draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """Return the labels (draws, m) the queries get, one row for every draw of the shots.

    Args:
        train: (n, D).
        labels: (n,) integers, each at least `shots` times.
        queries: (m, D).
        shots: training images of every class in one draw.
        draws: how many draws; they are the same for the same labels and seed, whatever the features.
        seed: of the draws.

    Raises:
        FeaturesError: features or labels that do not belong together, NaN or infinity, a class with too few images.

    """
    check_features(train, queries, labels)
    names, counts = np.unique(labels, return_counts=True)
    if counts.min() < shots:
        raise FeaturesError(
            f"class {names[counts.argmin()]} has {counts.min()} training images, fewer than {shots} shots"
        )
    rng = np.random.default_rng(seed)
    train, queries = unit(train), unit(queries)
    members = [np.flatnonzero(labels == name) for name in names]
    predicted = []
    for _ in range(draws):
        chosen = np.stack([rng.choice(rows, shots, replace=False) for rows in members])
        means = unit(train[chosen].mean(axis=1))
        predicted.append(names[(queries @ means.T).argmax(axis=1)])
    return np.stack(predicted)
