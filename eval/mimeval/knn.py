"""Weighted k-nearest-neighbour classification, as the field reports it for frozen features.

Every query takes a vote of its k most similar training images, weighted exp(cosine / T): Wu et al., 'Unsupervised
feature learning via non-parametric instance discrimination' (CVPR 2018), with k = 20 and T = 0.07 as in DINO.
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
    """Return the label (m,) each query gets; of two with equal votes, the smaller.

    Memory is that of the features, the neighbours and a table of 128 MiB, however many images and classes there are.

    Args:
        train: (n, D), of any length; it is normalised here.
        labels: (n,) integers.
        queries: (m, D).
        k: neighbours that vote, all where there are fewer; 1 is the nearest neighbour's label.
        temperature: T above; small values let the nearest decide.

    Raises:
        FeaturesError: features or labels that do not belong together, NaN or infinity.

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
    """Return the label (n,) that each of `features` (n, D) gets from the others.

    Raises:
        FeaturesError: as `predict`.

    """
    check_features(features, features, labels)
    indices, cosines = nearest(features, features, k, leave_one_out=True)
    return vote(labels[indices], cosines, temperature=temperature)
