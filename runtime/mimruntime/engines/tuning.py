"""Choose batch, threads and streams by measuring."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from mimruntime.cpus import available_cpus
from mimruntime.engines.base import Engine, Progress, Setting
from mimruntime.engines.options import CompileOptions
from mimruntime.engines.record import Trial
from mimruntime.errors import OptionError

BATCHES = (1, 2, 4, 8, 16)
"""Batch sizes to try, in addition to one and two images per stream; larger ones are not faster on a CPU."""
_ROUNDS = 2
"""Number of measurements per setting, in turn, so that load from other processes affects all settings."""
_LEAST_RUNS, _LEAST_SECONDS = 2, 0.3
_CLOSE = 0.98
"""A smaller batch is preferred if its rate is at least this share of the best: lower latency, less memory."""


def stream_settings(cpus: int) -> list[Setting]:
    """Return the settings to try with `cpus` CPUs: few and many streams, and half the threads (one per physical core)."""
    settings = [Setting(cpus, streams) for streams in sorted({1, 2, 4, cpus // 2, cpus}) if 0 < streams <= cpus]
    half = cpus // 2
    return [*settings, Setting(half), Setting(half, half)] if half > 1 else settings


def cpu_choices(options: CompileOptions) -> tuple[list[Setting], list[int]]:
    """Return the settings to try on this CPU, and the batch sizes; none stands for the usual ones."""
    if options.hint == "latency":
        return [Setting(options.threads or available_cpus())], [1]
    settings = stream_settings(options.threads or available_cpus())
    if options.threads:
        settings = [one for one in settings if one.threads == options.threads]
    return settings, [options.batch.best] if options.batch else []


def check_hint(options: CompileOptions) -> None:
    """Raise OptionError if the hint contradicts the batch."""
    if options.hint == "latency" and options.batch is not None and options.batch.best != 1:
        raise OptionError(
            f"--hint latency tunes for one image at a time, but --batch has best {options.batch.best}; give only one"
        )


def tune(
    open_with: Callable[[Setting], Engine],
    settings: Sequence[Setting],
    pixels: np.ndarray,
    progress: Progress,
    *,
    batches: Sequence[int] = (),
) -> tuple[Trial, tuple[Trial, ...]]:
    """Return the fastest setting, as `best_of` chooses it, and all measurements.

    Args:
        open_with: opens the engine with a setting.
        settings: settings to try, each with every batch size that is a multiple of its streams; one must have one stream.
        pixels: uint8 (n, H, W, 3), real images; repeated if a batch is larger.
        progress: called after each measurement.
        batches: batch sizes to try; if empty, `BATCHES` and one and two images per stream.

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
    """Return the trial with the smallest batch, then the fewest streams, among those close to the highest rate."""
    most = max(trial.images_per_second for trial in trials)
    close = [trial for trial in trials if trial.images_per_second >= _CLOSE * most]
    return min(close, key=lambda trial: (trial.batch, trial.streams, -trial.images_per_second))


def rate(engine: Engine, pixels: np.ndarray, batch: int) -> float:
    """Return the images per second of the median run with batch size `batch`, after one warm-up run."""
    images = pixels[np.resize(np.arange(len(pixels)), batch)]
    engine.run(images)
    seconds: list[float] = []
    while len(seconds) < _LEAST_RUNS or sum(seconds) < _LEAST_SECONDS:
        started = time.perf_counter()
        engine.run(images)
        seconds.append(time.perf_counter() - started)
    return batch / statistics.median(seconds)
