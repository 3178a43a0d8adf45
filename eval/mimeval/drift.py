"""Measure how far an engine's vectors are from torch's: by cosine, neighbours and selected patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mimeval.neighbours import nearest, overlap, unit

NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a precision's drift.

    Attributes:
        cosine_p1: lower limit of the 1st percentile of the cosine to torch.
        overlap: lower limit of the mean share of the 10 nearest neighbours that stay.

    """

    cosine_p1: float
    overlap: float


LIMITS = {
    "fp32": Limits(0.9999, 0.99),
    "fp16": Limits(0.999, 0.95),
    "bf16": Limits(0.99, 0.80),
    "int8": Limits(0.90, 0.50),
}
"""Limits by precision; the worst image has no limit, since two patches of nearly equal score may swap."""


@dataclass(frozen=True, slots=True)
class Drift:
    """The drift of an engine's vectors from torch's on the same images.

    Attributes:
        cosine_worst: least cosine.
        cosine_p1: its 1st percentile.
        cosine_median: its median.
        overlap: mean share of the 10 nearest neighbours in torch that are among the 10 nearest on the engine.
        jaccard: mean Jaccard overlap of the patches with at least the mean weight; None without a selection.
        images: number of images.

    """

    cosine_worst: float
    cosine_p1: float
    cosine_median: float
    overlap: float
    jaccard: float | None
    images: int


_ROUNDING = 1e-6
_SAME_NEIGHBOURS = 0.999


def to_rounding(drift: Drift) -> bool:
    """Return whether the vectors of all images equal torch's up to rounding in float32."""
    return drift.cosine_worst >= 1 - _ROUNDING and drift.overlap >= _SAME_NEIGHBOURS


def measure(
    reference: np.ndarray, deployed: np.ndarray, selections: tuple[np.ndarray, np.ndarray] | None = None
) -> Drift:
    """Compare features (n, D) of the same images, and if given, the patch weights (n, gh, gw) of both."""
    cosines = (unit(reference) * unit(deployed)).sum(axis=1)
    worst, first, median = np.quantile(cosines, [0, 0.01, 0.5])
    jaccard = None
    if selections is not None:
        chosen = [part.reshape(len(part), -1) for part in selections]
        # Weights of topk are 1/k or 0, those of AbMILP any value: a patch is chosen if it has at least the mean weight.
        first_set, second_set = (part >= (1 - 1e-3) / part.shape[1] for part in chosen)
        union = np.maximum((first_set | second_set).sum(axis=1), 1)
        jaccard = float(((first_set & second_set).sum(axis=1) / union).mean())
    return Drift(
        float(worst), float(first), float(median), _overlap(reference, deployed), jaccard, len(reference)
    )  # fmt: skip


def too_far(drift: Drift, precision: str) -> str | None:
    """Return the limit of `precision` that is exceeded, in one line, or None."""
    limits = LIMITS.get(precision, LIMITS["int8"])
    # NaN compares false with everything; written so that NaN exceeds the limits.
    if not drift.cosine_p1 >= limits.cosine_p1:
        return (
            f"vectors are not torch's: 1st percentile of the cosine {drift.cosine_p1:.5f},"
            f" at least {limits.cosine_p1} is expected in {precision}"
        )
    if not drift.overlap >= limits.overlap:
        return (
            f"neighbours are not torch's: {100 * drift.overlap:.1f} % of the {NEIGHBOURS} nearest stay,"
            f" at least {100 * limits.overlap:.0f} % are expected in {precision}"
        )
    return None


def _overlap(reference: np.ndarray, deployed: np.ndarray) -> float:
    wanted, found = (nearest(table, table, NEIGHBOURS, leave_one_out=True)[0] for table in (reference, deployed))
    return float(overlap(found, wanted).mean()) if wanted.shape[1] else 1.0  # a single image has no neighbours
