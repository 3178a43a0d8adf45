"""The figures of a benchmark: latency and throughput of one runner, ratios of several measured in turn."""

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
        name: as it stands in the table.
        open: makes it ready to run; given pixels, uint8 (n, H, W, 3), to tune it on.
        on_gpu: where it runs; it is measured against engines that run there, too.

    """

    name: str
    open: Callable[[np.ndarray], Engine]
    on_gpu: bool = False


@dataclass(slots=True)
class Figures:
    """What was measured of one runner.

    Attributes:
        name: of the engine or peer.
        what: precision, version, provider, threads and streams.
        latency_ms: of one image, p50, p95 and p99.
        images_per_second: by batch, without decoding.
        with_decoding: images/s at the best batch from encoded files; None where that was not measured.
        spent: where the time of that went; "" likewise.
        cold_start_s: from the start of a process to its first vector.
        peak_mib: of that process after a run of the best batch.
        share: of the machine's own rate of matrix products in its precision, at the best batch, about; None where that
            rate is not measured.

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
        """The batch of most images per second."""
        return max(self.images_per_second, key=self.images_per_second.__getitem__)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster `ours` is than `theirs`, each at its own best batch: the median of pairs run in turn."""

    ours: str
    theirs: str
    ratio: float
    low: float
    high: float
    pairs: int


def measure(figures: Figures, engine: Engine, pixels: np.ndarray, batches: Sequence[int], seconds: float) -> None:
    """Fill in latency, of one image, and throughput; `seconds` go to every batch, after one run to warm up.

    The batch that was tuned is measured too; an engine that runs no more than so many images is not asked for more.
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
    """Run A B A B … and return the ratios of images per second, ours to each of theirs.

    Args:
        ours: name, engine and batch.
        theirs: likewise.
        pixels: uint8 (n, H, W, 3).
        pairs: so many of each.

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
    """Return about how many operations one image takes: every weight meets every token, and tokens meet in attention.

    Args:
        weights: how many numbers the graph holds.
        tokens: S, prefix and patches.
        dim: their width.

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
