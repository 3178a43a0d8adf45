"""Measure latency and throughput of one runner, and ratios of runners measured alternately."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mimruntime.engines.base import Engine


@dataclass(frozen=True, slots=True)
class Peer:
    """Another way to run the same weights.

    Attributes:
        name: name in the table.
        open: opens it as an engine; its argument are pixels, uint8 (n, H, W, 3), for tuning.
        on_gpu: whether it runs on a GPU; it is compared only with engines on the same hardware.

    """

    name: str
    open: Callable[[np.ndarray], Engine]
    on_gpu: bool = False


@dataclass(slots=True)
class Figures:
    """Measurements of one runner.

    Attributes:
        name: name of the engine or peer.
        what: precision, version, provider, threads and streams.
        latency_ms: latency of one image: p50, p95 and p99.
        images_per_second: by batch size, without decoding.
        with_decoding: images/s from encoded files at the best batch; None if not measured.
        spent: how the time of that measurement is divided; "" if not measured.
        cold_start_s: time from process start to the first vector.
        peak_mib: peak memory of that process after a run of the best batch.
        share: estimated share of the machine's rate of matrix products reached at the best batch; None if that rate is
            not measured.

    """

    name: str
    what: str
    latency_ms: dict[str, float] = field(default_factory=dict)
    images_per_second: dict[int, float] = field(default_factory=dict)
    with_decoding: float | None = None
    spent: str = ""
    cold_start_s: float | None = None
    peak_mib: float | None = None
    share: float | None = None

    @property
    def best_batch(self) -> int:
        """The batch size with the most images per second."""
        return max(self.images_per_second, key=self.images_per_second.__getitem__)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Speed of `ours` divided by that of `theirs`, each at its best batch: median and quartiles of alternating pairs."""

    ours: str
    theirs: str
    ratio: float
    low: float
    high: float
    pairs: int


def measure(figures: Figures, engine: Engine, pixels: np.ndarray, batches: Sequence[int], seconds: float) -> None:
    """Measure the latency of one image and the throughput by batch into `figures`: `seconds` each, after a warm-up run.

    The tuned batch is measured too. Batches above the engine's limit are reduced to it.
    """
    most = engine.largest_batch or max(batches)
    sizes = {min(batch, most) for batch in (*batches, engine.best_batch or batches[0])}
    for batch in sorted({1, *sizes}):
        images = pixels[np.resize(np.arange(len(pixels)), batch)]
        engine.run(images)
        times = _timed(engine, images, seconds)
        if batch in sizes:
            figures.images_per_second[batch] = round(batch / statistics.median(times), 2)
        if batch == 1:
            cuts = np.percentile(times, (50, 95, 99)) * 1000
            figures.latency_ms = {
                name: round(float(cut), 2) for name, cut in zip(("p50", "p95", "p99"), cuts, strict=True)
            }


def in_turn(
    ours: tuple[str, Engine, int], theirs: Sequence[tuple[str, Engine, int]], pixels: np.ndarray, pairs: int
) -> list[Ratio]:
    """Run A B A B … and return the ratios of images per second, `ours` to each of `theirs`.

    Args:
        ours: name, engine and batch.
        theirs: name, engine and batch of each other runner.
        pixels: uint8 (n, H, W, 3).
        pairs: number of pairs per ratio.

    """
    found = []
    for name, engine, batch in theirs:
        ratios = []
        for _ in range(pairs):
            a, b = (_once(one, pixels, size) for one, size in ((ours[1], ours[2]), (engine, batch)))
            ratios.append(a / b)
        low, middle, high = np.percentile(ratios, (25, 50, 75))
        found.append(Ratio(ours[0], name, round(float(middle), 3), round(float(low), 3), round(float(high), 3), pairs))
    return found


def flop_per_image(weights: float, tokens: int, dim: int) -> float:
    """Return an estimate of the operations per image: each weight times each token, plus attention between tokens.

    Args:
        weights: number of weights in the graph.
        tokens: number S of tokens, prefix and patches.
        dim: width of a token.

    """
    blocks = weights / (12 * dim**2)
    return 2 * weights * tokens + 4 * blocks * tokens**2 * dim


def _timed(engine: Engine, images: np.ndarray, seconds: float) -> list[float]:
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        started = time.perf_counter()
        engine.run(images)
        times.append(time.perf_counter() - started)
    return times


def _once(engine: Engine, pixels: np.ndarray, batch: int) -> float:
    images = pixels[np.resize(np.arange(len(pixels)), batch)]
    started = time.perf_counter()
    engine.run(images)
    return batch / (time.perf_counter() - started)
