"""Batch, threads and streams, chosen by measurement."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from mimruntime.engines.base import Engine, Progress, Setting
from mimruntime.engines.record import Trial

BATCHES = (1, 2, 4, 8, 16)
"""Batches that are tried beside one and two images a stream; more brings nothing on a CPU and takes memory."""
_ROUNDS = 2
"""Every setting is measured so often, in turn, so that a neighbour's load does not fall on one of them."""
_LEAST_RUNS, _LEAST_SECONDS = 2, 0.3
_CLOSE = 0.98
"""A smaller batch whose rate is at least this share of the best wins: it answers sooner and takes less memory."""


def stream_settings(cpus: int) -> list[Setting]:
    """Return what is worth trying with `cpus` CPUs: few streams and many, and one thread for every two CPUs of a core."""
    settings = [Setting(cpus, streams) for streams in sorted({1, 2, 4, cpus // 2, cpus}) if 0 < streams <= cpus]
    half = cpus // 2
    return [*settings, Setting(half), Setting(half, half)] if half > 1 else settings


def tune(
    open_with: Callable[[Setting], Engine],
    settings: Sequence[Setting],
    pixels: np.ndarray,
    progress: Progress,
    *,
    batches: Sequence[int] = (),
) -> tuple[Trial, tuple[Trial, ...]]:
    """Return the setting of most images per second, and all that were measured.

    Args:
        open_with: opens the engine anew.
        settings: what to try, each with every batch that its streams divide; one has a single stream.
        pixels: uint8 (n, H, W, 3), real images; repeated where a batch is larger.
        progress: told after every measurement.
        batches: sizes to try; without any, `BATCHES`, and one and two images for every stream.

    """
    tried = [(setting, batch) for setting in settings for batch in _batches_of(setting, batches)]
    rates: dict[tuple[Setting, int], list[float]] = {one: [] for one in tried}
    for turn in range(_ROUNDS):
        for setting in dict.fromkeys(setting for setting, _ in tried):
            with open_with(setting) as engine:
                for batch in (batch for one, batch in tried if one == setting):
                    rates[setting, batch].append(rate(engine, pixels, batch))
                    progress(
                        "tuning", turn * len(tried) + sum(len(r) > turn for r in rates.values()), _ROUNDS * len(tried)
                    )
    trials = tuple(
        Trial(
            batch=batch,
            threads=setting.threads,
            streams=setting.streams,
            images_per_second=round(statistics.median(measured), 2),
        )
        for (setting, batch), measured in rates.items()
    )
    return best_of(trials), trials


def _batches_of(setting: Setting, given: Sequence[int]) -> list[int]:
    batches = sorted(set(given) or {*BATCHES, setting.streams, 2 * setting.streams})
    return [batch for batch in batches if batch % setting.streams == 0]


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the smallest batch, then the fewest streams, whose rate is close to the highest."""
    most = max(trial.images_per_second for trial in trials)
    close = [trial for trial in trials if trial.images_per_second >= _CLOSE * most]
    return min(close, key=lambda trial: (trial.batch, trial.streams, -trial.images_per_second))


def rate(engine: Engine, pixels: np.ndarray, batch: int) -> float:
    """Return images per second of runs of `batch`, the median run, after one to warm up."""
    images = pixels[np.resize(np.arange(len(pixels)), batch)]
    engine.run(images)
    seconds: list[float] = []
    while len(seconds) < _LEAST_RUNS or sum(seconds) < _LEAST_SECONDS:
        started = time.perf_counter()
        engine.run(images)
        seconds.append(time.perf_counter() - started)
    return batch / statistics.median(seconds)
