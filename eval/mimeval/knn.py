"""Weighted k-nearest-neighbour classification, as the field reports it for frozen features.

Every query takes a vote of its k most similar training images, weighted exp(cosine / T): Wu et al., 'Unsupervised
feature learning via non-parametric instance discrimination' (CVPR 2018), with k = 20 and T = 0.07 as in DINO.
"""

from __future__ import annotations

import numpy as np

from mimeval.checks import check_features
from mimeval.neighbours import nearest

K, TEMPERATURE = 20, 0.07
_VOTES_AT_ONCE = 1024
"""Queries; each has a vote for every class."""


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


def vote(labels: np.ndarray, cosines: np.ndarray, *, temperature: float = TEMPERATURE) -> np.ndarray:
    """Return the label (m,) with the most votes among the neighbours that `find` gives."""
    names, classes = np.unique(labels, return_inverse=True)
    classes = classes.reshape(labels.shape)
    # Relative to the nearest, or exp would overflow at small temperatures.
    weights = np.exp((cosines - cosines[:, :1]) / np.float32(temperature))
    chosen = np.empty(len(labels), np.int64)
    for start in range(0, len(labels), _VOTES_AT_ONCE):
        part = slice(start, min(start + _VOTES_AT_ONCE, len(labels)))
        shape = part.stop - start, len(names)
        cells = np.arange(shape[0])[:, None] * len(names) + classes[part]
        votes = np.bincount(cells.ravel(), weights[part].ravel(), minlength=shape[0] * shape[1])
        chosen[part] = votes.reshape(shape).argmax(axis=1)
    return np.asarray(names[chosen])
