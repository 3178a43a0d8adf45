"""Few-shot classification by the nearest class mean, averaged over random samples of the shots.

Class means of unit features are compared by cosine: a prototype classifier (Snell et al., NeurIPS 2017) without
hyperparameters.
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
    """Return the predicted labels (draws, m), one row per sample of the shots.

    Args:
        train: (n, D).
        labels: (n,) integers; each class must occur at least `shots` times.
        queries: (m, D).
        shots: training images per class in one sample.
        draws: number of samples; they depend only on labels and seed, not on the features.
        seed: seed of the samples.

    Raises:
        FeaturesError: features or labels do not fit together or are not finite, or a class has too few images.

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
