"""Weighted k-nearest-neighbour classification of frozen features.

The k most similar training images of a query vote with weights exp(cosine / T): Wu et al., 'Unsupervised feature learning
via non-parametric instance discrimination' (CVPR 2018), with k = 20 and T = 0.07 as in DINO.
"""

from __future__ import annotations

import numpy as np

from mimeval.checks import check_features
from mimeval.neighbours import nearest
from mimruntime.search.voting import TEMPERATURE, K, vote

__all__ = ["TEMPERATURE", "K", "find", "leave_one_out", "predict", "vote"]


def predict(
    train: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, k: int = K, temperature: float = TEMPERATURE
) -> np.ndarray:
    """Return the predicted label (m,) of each query; if votes are equal, the smaller label wins.

    Memory is needed for the features, the neighbours and a table of at most 128 MiB.

    Args:
        train: (n, D), not necessarily normalised.
        labels: (n,) integers.
        queries: (m, D).
        k: number of voting neighbours, or all if there are fewer; 1 takes the nearest neighbour's label.
        temperature: T above; with small values the nearest neighbour decides.

    Raises:
        FeaturesError: features or labels do not fit together, or are not finite.

    """
    return vote(*find(train, labels, queries, k=k), temperature=temperature)


def find(train: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, k: int = K) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (m, k) of each query's most similar training images and their cosines (m, k), nearest first.

    Raises:
        FeaturesError: as `predict`.

    """
    check_features(train, queries, labels)
    indices, cosines = nearest(queries, train, k)
    return labels[indices], cosines


def leave_one_out(
    features: np.ndarray, labels: np.ndarray, *, k: int = K, temperature: float = TEMPERATURE
) -> np.ndarray:
    """Return the label (n,) of each row of `features` (n, D), predicted from the other rows.

    Raises:
        FeaturesError: as `predict`.

    """
    check_features(features, features, labels)
    indices, cosines = nearest(features, features, k, leave_one_out=True)
    return vote(labels[indices], cosines, temperature=temperature)
