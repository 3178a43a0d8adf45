"""Paired statistics over images: intervals from one bootstrap, McNemar's test, and whether a gain was kept.

Scores are numbers in [0, 1], one an image: right or wrong, a share of draws, an average precision. Columns of one table
are compared on the same resample, so that what is hard about an image cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.stats import binomtest, norm

CONFIDENCE = 0.95
RESAMPLES = 10_000
MARGIN = 0.005
"""Half a point of accuracy: what a gain may lose between torch and the deployed engine."""

Verdict = Literal["pass", "fail", "undecided"]
LOSES = "loses to the baseline in torch already"

_SIGNS = 100_000
"""Draws of random signs: a twentieth of the smallest share of error that some hundred rows leave each."""
_MOST_IMAGES = 10**9
"""An estimate above it says that the loss lies at the margin, and no number of images would decide."""
_FEW_ROWS = 64
"""Distinct rows up to which a multinomial draw is the cheaper one."""
_CHUNK_CELLS = 1 << 22
"""Multiplicities used at once: 32 MiB as float64, 4 MiB as they are kept."""
_KEPT_CHUNKS = 8
"""All resamples of some 3,000 images."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval, in the unit of the scores."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's exact test of two classifiers on the same images.

    Attributes:
        only_first: images that only the first has right.
        only_second: images that only the second has right.
        p: two-sided probability of a split at least this uneven, were they equally good.

    """

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True, slots=True)
class GainVerdict:
    """Whether an aggregator's gain over its baseline is still there on an engine.

    Attributes:
        verdict: "pass", "fail" or "undecided".
        reason: one sentence.
        reference: the gain in torch.
        gain: the gain on the engine.
        change: gain minus reference.
        margin: the loss that is tolerated.
        images: on which the engine was measured.
        reference_images: on which the gain in torch was.
        images_needed: an estimate of how many would decide; equal to `images` where it is decided, None where no number
            would, as far as can be seen.

    """

    verdict: Verdict
    reason: str
    reference: Interval
    gain: Interval
    change: Interval
    margin: float
    images: int
    reference_images: int
    images_needed: int | None


def bootstrap_means(scores: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return the column means of resampled images, float64 (resamples, m).

    Drawing n images with replacement is a multinomial draw over the distinct rows of the table. Right and wrong have at
    most 2^m of them, however many images there are, and are drawn so; of many distinct rows the images are drawn one by
    one and counted, which then is several times cheaper.

    Args:
        scores: (n, m), one row an image.
        resamples: number of draws.
        seed: the same seed gives the same draws.

    """
    scores = np.asarray(scores, np.float64)
    images = len(scores)
    rows, counts = np.unique(scores, axis=0, return_counts=True)
    if len(rows) <= _FEW_ROWS:
        drawn = np.random.default_rng(seed).multinomial(images, counts / images, size=resamples)
        return np.asarray(drawn @ rows / images)
    means = np.empty((resamples, scores.shape[1]))
    step = max(1, _CHUNK_CELLS // images)
    for chunk, start in enumerate(range(0, resamples, step)):
        part = means[start : start + step]
        part[:] = _multiplicities(images, len(part), seed, chunk).astype(np.float64) @ scores / images
    return means


@lru_cache(maxsize=_KEPT_CHUNKS)
def _multiplicities(images: int, resamples: int, seed: int, chunk: int) -> np.ndarray:
    """Return how often each image is drawn (resamples, images); kept, because every score of a report asks again.

    As uint8: 256 draws of one image are out of the question (multiplicities are Poisson's, of mean 1).
    """
    rng = np.random.default_rng((seed, chunk))
    counts = np.empty((resamples, images), np.uint8)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, images, images), minlength=images)
    return counts


def interval(value: float, draws: np.ndarray) -> Interval:
    """Return the percentile interval of `draws` at `CONFIDENCE` around `value`."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def mean_interval(scores: np.ndarray, *, seed: int = 0) -> Interval:
    """Return the mean of scores (n,) with its bootstrap interval."""
    return interval(scores.mean(), bootstrap_means(scores[:, None], seed=seed)[:, 0])


def is_lower(scores: np.ndarray, baseline: np.ndarray, *, seed: int = 0, rows: int = 1) -> bool:
    """Return whether scores (n,) are shown to be lower than those of the same images before, when `rows` are asked.

    Both the bootstrap of the mean and random signs must show it. Where few images differ the bootstrap alone is too sure
    far from 95 %: of 9 that differ, all for the worse, it misses every one in e^-9 = 1 of 8,000 draws, and a fair coin
    gives them 1 time in 512.
    """
    change = np.asarray(scores, np.float64) - np.asarray(baseline, np.float64)
    allowed = (1 - CONFIDENCE) / 2 / rows
    draws = bootstrap_means(change[:, None], seed=seed)[:, 0]
    return bool(np.quantile(draws, 1 - allowed) < 0) and _random_signs(change, seed) < allowed


def _random_signs(change: np.ndarray, seed: int) -> float:
    """Return the one-sided probability of so low a mean of the changes (n,), were loss and gain of each equally likely.

    Of changes of one size, right to wrong or back, that is the exact sign test, and McNemar's. Of others (average
    precisions) it is drawn: counting signs would let many tiny gains outvote a few queries that are lost.
    """
    sizes = np.abs(change[change != 0])
    if not len(sizes):
        return 1.0
    if np.ptp(sizes) == 0:
        return float(binomtest(int(np.sum(change < 0)), len(sizes), alternative="greater").pvalue)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_CELLS // len(sizes))
    as_low = 0
    for start in range(0, _SIGNS, step):
        bits = rng.integers(0, 2, (min(step, _SIGNS - start), len(sizes)), np.int8)
        # Sums that are equal but for rounding count as equally low.
        as_low += int(np.sum((2.0 * bits - 1) @ sizes <= change.sum() + 1e-12))
    return (1 + as_low) / (1 + _SIGNS)


def paired_difference(scores: np.ndarray, baseline: np.ndarray, *, seed: int = 0) -> Interval:
    """Return mean(scores) - mean(baseline), both (n,) of the same images, with its paired bootstrap interval."""
    return mean_interval(np.asarray(scores, np.float64) - np.asarray(baseline, np.float64), seed=seed)


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Compare two classifiers by the images that only one of them has right; the exact binomial form of McNemar (1947).

    Args:
        first: bool (n,), whether the first classifier is right.
        second: likewise, of the same images.

    """
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(second & ~first))
    split = only_first + only_second
    p = float(binomtest(only_first, split).pvalue) if split else 1.0
    return McNemar(only_first, only_second, p)


def judge_gain(
    reference: np.ndarray,
    reference_baseline: np.ndarray,
    engine: np.ndarray,
    engine_baseline: np.ndarray,
    *,
    margin: float = MARGIN,
    seed: int = 0,
    established_on: tuple[np.ndarray, np.ndarray] | None = None,
    rows: int = 1,
) -> GainVerdict:
    """Judge whether the gain of `reference` over its baseline carried over to the engine.

    It passes when the gain in torch is established (its interval lies above 0) and the change of the gain is shown to
    be no loss beyond the margin. It fails when the gain in torch is shown to be a loss, or when a loss of gain is shown
    and may exceed the margin. Everything else is undecided.

    Args:
        reference: scores (n,) of the aggregator in torch, fp32.
        reference_baseline: of the baseline, usually [cls], in torch.
        engine: of the aggregator on the engine.
        engine_baseline: of the baseline on the engine.
        margin: the loss that is tolerated, in the unit of the scores.
        seed: of the bootstrap; one resample serves the four.
        established_on: scores of the aggregator and its baseline in torch on more images, which then say whether there
            is a gain at all; the change is still that of the n images.
        rows: how many gains are judged together, any of which fails them all. Either loss must then be shown at that
            fraction of the error (Bonferroni); to pass, every row must pass, which needs no correction.

    """
    scores = np.stack([reference, reference_baseline, engine, engine_baseline], axis=1).astype(np.float64)
    contrasts = np.array([[1.0, -1, 0, 0], [0, 0, 1, -1], [-1, 1, 1, -1]])
    values = contrasts @ scores.mean(axis=0)
    draws = bootstrap_means(scores, seed=seed) @ contrasts.T
    gained, gain, change = (interval(value, draw) for value, draw in zip(values, draws.T, strict=True))
    seen, change = change, _with_unseen(change, len(scores))
    gains = scores[:, 2] - scores[:, 3], scores[:, 0] - scores[:, 1]
    lost = change.high < 0 and is_lower(*gains, seed=seed, rows=rows)
    in_torch = established_on or (reference, reference_baseline)
    if established_on is not None:
        gained = paired_difference(*in_torch, seed=seed)
    loses = gained.high < 0 and is_lower(*in_torch, seed=seed, rows=rows)
    verdict, reason = _verdict(gained, change, margin, loses=loses, lost=lost)
    counts = len(scores), len(in_torch[0])
    needed = len(scores) if verdict != "undecided" else _images_needed(gained, seen, margin, counts, rows)
    return GainVerdict(verdict, reason, gained, gain, change, margin, *counts, needed)


def _with_unseen(change: Interval, images: int) -> Interval:
    """Widen an interval by what n images cannot exclude: an event not seen among n may still have a rate of 3 / n.

    A bootstrap knows only what occurred, so two engines that agree on 20 images would be certain to agree always (the
    'rule of three', Hanley & Lippman-Hand, JAMA 1983).
    """
    unseen = 3 / images
    return Interval(change.value, min(change.low, change.value - unseen), max(change.high, change.value + unseen))


def _verdict(reference: Interval, change: Interval, margin: float, *, loses: bool, lost: bool) -> tuple[Verdict, str]:
    if loses:
        return "fail", LOSES
    if change.low < -margin and lost:
        return "fail", "the gain shrank, and by more than the margin for all that can be shown"
    if reference.low <= 0:
        return "undecided", "no gain is established in torch, so there is nothing to carry over"
    if change.low > -margin:
        return "pass", "the gain carried over"
    return "undecided", "too few images to exclude a loss beyond the margin"


def _images_needed(gained: Interval, change: Interval, margin: float, counts: tuple[int, int], rows: int) -> int | None:
    """Estimate the images that decide, from intervals that narrow with the square root of their number.

    Args:
        gained: the gain in torch.
        change: what became of it on the engine, without what is not seen among n images, which narrows with n itself.
        margin: see `judge_gain`.
        counts: images on the engine and in torch.
        rows: see `judge_gain`.

    """
    images, in_torch = counts
    allowed = (1 - CONFIDENCE) / 2
    strict = (norm.isf(allowed / rows) / norm.isf(allowed)) ** 2
    room = change.value + margin
    carried = max(images * _growth(change.value - change.low, room), _to_see(3, room))
    signs = math.log2(rows / allowed)  # so many tails in a row no fair coin shows
    lost = max(images * strict * _growth(change.high - change.value, -change.value), _to_see(signs, -change.value))
    gains = 0.0 if gained.low > 0 else in_torch * _growth(gained.value - gained.low, gained.value)
    below = strict * _growth(gained.high - gained.value, -gained.value)
    loses = max(in_torch * below, _to_see(signs, -gained.value))
    needed = max(images, min(max(gains, carried), lost, loses))
    return math.ceil(needed) if needed <= _MOST_IMAGES else None


def _to_see(events: float, rate: float) -> float:
    """Return the images among which an event of that rate occurs so often."""
    return events / rate if rate > 0 else math.inf


def _growth(half_width: float, distance: float) -> float:
    """Return how many times the images an interval needs to clear a bound that lies `distance` from its centre."""
    return (half_width / distance) ** 2 if distance > 0 else math.inf
