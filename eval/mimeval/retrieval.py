"""Instance retrieval: average precision of a full ranking, and recall@k.

Average precision is the step sum Σ precision(r) · Δrecall(r), as in scikit-learn and MTEB. With `trapezoid`, it is the mean
of the precisions before and after each match, as in the revisited Oxford and Paris protocol, whose junk images are
`ignored` (Radenović et al., 'Revisiting Oxford and Paris', CVPR 2018). Recall@k is the share of queries with a match among
the first k, as in metric learning (Jégou et al., TPAMI 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mimeval.checks import check_features
from mimeval.errors import FeaturesError
from mimeval.neighbours import similarities
from mimruntime.cpus import available_cpus

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True, slots=True, eq=False)
class Retrieval:
    """Results per query.

    Attributes:
        average_precision: float64 (m,) in [0, 1].
        found: bool (m,) for each k of `RECALL_AT`: whether a match is among the first k.

    """

    average_precision: np.ndarray
    found: dict[int, np.ndarray]


def retrieve(
    queries: np.ndarray,
    gallery: np.ndarray,
    matches: Sequence[np.ndarray],
    ignored: Sequence[np.ndarray] | None = None,
    *,
    trapezoid: bool = False,
) -> Retrieval:
    """Rank the gallery for each query by cosine.

    Args:
        queries: (m, D).
        gallery: (n, D).
        matches: for each query, the correct rows of the gallery, at least one.
        ignored: for each query, the rows that do not count, such as itself and junk.
        trapezoid: use the average precision of the revisited Oxford and Paris protocol.

    Raises:
        FeaturesError: features do not fit together or are not finite, or a query has no match.

    """
    check_features(gallery, queries)
    empty = [row for row, right in enumerate(matches) if not len(right)]
    if empty or len(matches) != len(queries):
        raise FeaturesError(f"{len(matches)} lists of matches for {len(queries)} queries, {len(empty)} of them empty")
    precisions = np.empty(len(queries))
    found = {k: np.empty(len(queries), bool) for k in RECALL_AT}

    def rank(row: int, cosines: np.ndarray) -> None:
        ranks = _ranks(cosines, matches[row], None if ignored is None else ignored[row])
        precisions[row] = _average_precision(ranks, trapezoid)
        for k, hits in found.items():
            hits[row] = ranks[0] < k

    with ThreadPoolExecutor(available_cpus()) as pool:  # sorting is most of the work, and NumPy sorts without the GIL
        for part, table in similarities(queries, gallery):
            list(pool.map(rank, range(part.start, part.stop), table))
    return Retrieval(precisions, found)


def guessed_precision(matches: int, gallery: int) -> float:
    """Return the expected average precision of a random ranking (Bestgen, 'Exact expected average precision', 2015).

    Args:
        matches: number of correct images, at least 1.
        gallery: number of ranked images, at least `matches`.

    """
    harmonic = float((1 / np.arange(1, gallery + 1)).sum())
    spread = (matches - 1) / (gallery - 1) * (gallery - harmonic) if gallery > 1 else 0.0
    return (spread + harmonic) / gallery


def _ranks(cosines: np.ndarray, matches: np.ndarray, ignored: np.ndarray | None) -> np.ndarray:
    """Return the ranks of the matches, from 0 and ascending, in the ranking without ignored rows; `cosines` is overwritten."""
    if ignored is not None and len(ignored):
        cosines[ignored] = -np.inf
    right = matches[cosines[matches] > -np.inf]
    found = cosines[right]
    # Counting what is larger in sorted values takes a quarter of the time of sorting indices.
    ascending = np.sort(cosines)
    ranks = len(cosines) - np.searchsorted(ascending, found, "right")
    equal = len(cosines) - np.searchsorted(ascending, found, "left") - ranks
    for place in np.flatnonzero(equal > 1):  # of equal cosines the first row comes first
        ranks[place] += np.count_nonzero(cosines[: right[place]] == found[place])
    return np.sort(ranks)


def _average_precision(ranks: np.ndarray, trapezoid: bool) -> float:
    found = np.arange(1, len(ranks) + 1)
    after = found / (ranks + 1)
    if not trapezoid:
        return float(after.mean())
    before = np.where(ranks == 0, 1.0, (found - 1) / np.maximum(ranks, 1))
    return float(((before + after) / 2).mean())
