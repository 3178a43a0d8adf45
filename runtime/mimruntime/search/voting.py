"""Weighted k-nearest-neighbour classification, the usual measure of frozen features.

The k most similar images of a query vote with weights exp(cosine / T): Wu et al., 'Unsupervised feature learning via
non-parametric instance discrimination' (CVPR 2018), with k = 20 and T = 0.07 as in DINO.
"""

from __future__ import annotations

import numpy as np

K, TEMPERATURE = 20, 0.07
_VOTES_AT_ONCE = 1024
"""Queries per step; each needs a number for every class."""


def vote(labels: np.ndarray, cosines: np.ndarray, *, temperature: float = TEMPERATURE) -> np.ndarray:
    """Return the label (m,) with the most votes among each query's neighbours; in a tie, the smaller label.

    Args:
        labels: labels (m, k) of the neighbours, nearest first.
        cosines: cosines (m, k) to them.
        temperature: T above; a small value gives the nearest neighbours more weight.

    """
    names, classes = np.unique(labels, return_inverse=True)
    classes = classes.reshape(labels.shape)
    # Relative to the nearest, since exp would overflow at small temperatures.
    weights = np.exp((cosines - cosines[:, :1]) / np.float32(temperature))
    chosen = np.empty(len(labels), np.int64)
    for start in range(0, len(labels), _VOTES_AT_ONCE):
        part = slice(start, min(start + _VOTES_AT_ONCE, len(labels)))
        shape = part.stop - start, len(names)
        cells = np.arange(shape[0])[:, None] * len(names) + classes[part]
        votes = np.bincount(cells.ravel(), weights[part].ravel(), minlength=shape[0] * shape[1])
        chosen[part] = votes.reshape(shape).argmax(axis=1)
    return np.asarray(names[chosen])
