"""Weighted k-nearest-neighbour classification, as the field reports it for frozen features.

Every query takes a vote of its k most similar training images, weighted exp(cosine / T): Wu et al., 'Unsupervised
feature learning via non-parametric instance discrimination' (CVPR 2018), with k = 20 and T = 0.07 as in DINO.
"""

from __future__ import annotations

import numpy as np

from mimeval.checks import check_features
from mimeval.neighbours import nearest

K, TEMPERATURE = 20, 0.07


def predict(
    train: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, k: int = K, temperature: float = TEMPERATURE
) -> np.ndarray:
    """Return the label (m,) each query gets; of two with equal votes, the smaller.

    Memory is that of the features and a table of 128 MiB, however many images there are.

    Args:
        train: (n, D), of any length; it is normalised here.
        labels: (n,) integers.
        queries: (m, D).
        k: neighbours that vote, all where there are fewer; 1 is the nearest neighbour's label.
        temperature: T above; small values let the nearest decide.

    Raises:
        FeaturesError: features or labels that do not belong together, NaN or infinity.

    """
    check_features(train, queries, labels)
    names, classes = np.unique(labels, return_inverse=True)
    indices, cosines = nearest(queries, train, k)
    # Relative to the nearest, or exp would overflow at small temperatures.
    weights = np.exp((cosines - cosines[:, :1]) / np.float32(temperature))
    cells = np.arange(len(queries))[:, None] * len(names) + classes[indices]
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(queries) * len(names))
    return np.asarray(names[votes.reshape(len(queries), len(names)).argmax(axis=1)])
