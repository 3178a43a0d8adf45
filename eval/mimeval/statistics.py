"""Paired statistics over images: bootstrap intervals, McNemar's test, and the verdict about a gain.

Scores are numbers in [0, 1], one per image: correct or not, a share of samples, or an average precision. Columns of one
table are compared on the same resample, so that the difficulty of an image cancels.
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
"""Tolerated loss of gain between torch and an engine: half a percentage point."""

Verdict = Literal["pass", "fail", "undecided"]
LOSES = "loses to the baseline in torch already"

_SIGNS = 100_000
"""Number of random sign vectors; enough to resolve the error allowed per row with about a hundred rows."""
_MOST_IMAGES = 10**9
"""Largest estimate of images needed; above it the loss is at the margin, and no number of images would decide."""
_FEW_ROWS = 64
"""Number of distinct rows up to which multinomial sampling is faster."""
_CHUNK_CELLS = 1 << 22
"""Multiplicities per chunk: 32 MiB as float64, 4 MiB as stored."""
_KEPT_CHUNKS = 8
"""Number of cached chunks; enough for all resamples of about 3,000 images."""


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
        only_first: number of images that only the first classifies correctly.
        only_second: number of images that only the second classifies correctly.
        p: two-sided probability of a split at least this uneven if both are equally good.

    """

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True, slots=True)
class GainVerdict:
    """Whether an aggregator's gain over its baseline is kept on an engine.

    Attributes:
        verdict: "pass", "fail" or "undecided".
        reason: one sentence.
        reference: the gain in torch.
        gain: the gain on the engine.
        change: gain minus reference.
        margin: the tolerated loss.
        images: number of images on the engine.
        reference_images: number of images for the gain in torch.
        images_needed: estimated number of images for a decision; equal to `images` if decided, None if no number would
            decide.

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

    Sampling n images with replacement is a multinomial sample over the distinct rows of the table. With binary scores there
    are at most 2^m distinct rows, so the multinomial is fast. With many distinct rows, it is several times faster to sample
    images one by one and count them.

    Args:
        scores: (n, m), one row per image.
        resamples: number of resamples.
        seed: the same seed gives the same resamples.

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
    """Return how often each image is sampled (resamples, images); cached, because all scores of a report use it.

    uint8 is enough: multiplicities are Poisson-distributed with mean 1, so 256 does not occur.
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
    """Return whether scores (n,) are significantly lower than `baseline` on the same images, among `rows` tests.

    Both the bootstrap of the mean and a random sign test must show it. If few images differ, the bootstrap alone is
    overconfident at small error levels. For example, if 9 images differ and all are worse, a resample misses all of them
    with probability e^-9 = 1/8,000, but random signs give this result with probability 1/512.
    """
    change = np.asarray(scores, np.float64) - np.asarray(baseline, np.float64)
    allowed = (1 - CONFIDENCE) / 2 / rows
    draws = bootstrap_means(change[:, None], seed=seed)[:, 0]
    return bool(np.quantile(draws, 1 - allowed) < 0) and _random_signs(change, seed) < allowed


def _random_signs(change: np.ndarray, seed: int) -> float:
    """Return the one-sided probability of so low a mean of the changes (n,) if each sign were random.

    If all changes have the same size (binary scores), this is the exact sign test, equal to McNemar's. Otherwise (average
    precisions) it is estimated by sampling signs, because counting signs would ignore the sizes of the changes.
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
        # The tolerance makes sums that differ only by rounding count as equal.
        as_low += int(np.sum((2.0 * bits - 1) @ sizes <= change.sum() + 1e-12))
    return (1 + as_low) / (1 + _SIGNS)


def paired_difference(scores: np.ndarray, baseline: np.ndarray, *, seed: int = 0) -> Interval:
    """Return mean(scores) - mean(baseline), both (n,) on the same images, with its paired bootstrap interval."""
    return mean_interval(np.asarray(scores, np.float64) - np.asarray(baseline, np.float64), seed=seed)


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Compare two classifiers by the images that only one classifies correctly: McNemar (1947), exact binomial form.

    Args:
        first: bool (n,), whether the first classifier is correct.
        second: bool (n,), whether the second classifier is correct on the same images.

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
    """Judge whether the gain of `reference` over its baseline is kept on the engine.

    The verdict is "pass" if the interval of the gain in torch is above 0 and a loss of gain beyond the margin is excluded.
    It is "fail" if the gain in torch is significantly negative, or if the loss of gain is significant and may exceed the
    margin. Otherwise it is "undecided".

    Args:
        reference: scores (n,) of the aggregator in torch, fp32.
        reference_baseline: scores (n,) of the baseline, usually [cls], in torch.
        engine: scores (n,) of the aggregator on the engine.
        engine_baseline: scores (n,) of the baseline on the engine.
        margin: the tolerated loss, in the unit of the scores.
        seed: seed of the bootstrap; all four use the same resamples.
        established_on: scores of the aggregator and its baseline in torch on more images, to establish the gain in torch;
            the change of the gain is still measured on the n images.
        rows: number of gains judged together. Any failure fails all, so a loss must be significant at this fraction of the
            error (Bonferroni). To pass, every row must pass, which needs no correction.

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
    """Widen an interval by 3 / n, the rate that an event not seen among n images may still have.

    A bootstrap cannot account for unseen events: two engines that agree on 20 images would seem to agree always. See the
    'rule of three' (Hanley & Lippman-Hand, JAMA 1983).
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
    """Estimate the number of images for a decision; intervals narrow with the square root of the number.

    Args:
        gained: the gain in torch.
        change: the change of the gain on the engine, before `_with_unseen`, whose term narrows with n itself.
        margin: see `judge_gain`.
        counts: number of images on the engine and in torch.
        rows: see `judge_gain`.

    """
    images, in_torch = counts
    allowed = (1 - CONFIDENCE) / 2
    strict = (norm.isf(allowed / rows) / norm.isf(allowed)) ** 2
    room = change.value + margin
    carried = max(images * _growth(change.value - change.low, room), _to_see(3, room))
    signs = math.log2(rows / allowed)  # so many equal signs are significant
    lost = max(images * strict * _growth(change.high - change.value, -change.value), _to_see(signs, -change.value))
    gains = 0.0 if gained.low > 0 else in_torch * _growth(gained.value - gained.low, gained.value)
    below = strict * _growth(gained.high - gained.value, -gained.value)
    loses = max(in_torch * below, _to_see(signs, -gained.value))
    needed = max(images, min(max(gains, carried), lost, loses))
    return math.ceil(needed) if needed <= _MOST_IMAGES else None


def _to_see(events: float, rate: float) -> float:
    """Return the number of images in which an event with this rate is expected `events` times."""
    return events / rate if rate > 0 else math.inf


def _growth(half_width: float, distance: float) -> float:
    """Return the factor by which the number of images must grow for the interval to exclude a bound at `distance`."""
    return (half_width / distance) ** 2 if distance > 0 else math.inf
