"""The pipeline from sources to rows of an engine: decoded ahead in threads, run in batches of few sizes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mimruntime.cpus import available_cpus
from mimruntime.decode import Source
from mimruntime.engines.base import Engine
from mimruntime.errors import EngineError, ImageError

_WINDOW_BATCHES = 3
"""Batches that are being decoded, waiting or running: enough to overlap, few enough for memory to stay flat."""
_MOST_WORKERS = 8
"""A worker may hold one image of a quarter of a gigabyte."""
_CLOSED = "this Embedder is closed; use it inside its `with` block"


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One source, and its row of the graph's output or the reason there is none."""

    source: Source
    row: np.ndarray | None
    error: ImageError | None


class BatchPipeline:
    """Decodes in threads of its own beside an engine, which runs one batch at a time; used from any number of threads.

    Args:
        engine: opened; `close` closes it.
        prepare: a source to the pixels that the graph takes, uint8 (H, W, 3); ImageError where it is no image.
        sizes: what `batch_sizes` gives.
        workers: threads that decode; None is one per CPU, at most 8.

    """

    def __init__(
        self, engine: Engine, prepare: Callable[[Source], np.ndarray], sizes: tuple[int, ...], workers: int | None
    ) -> None:
        self.sizes = sizes
        self._engine = engine
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(workers or min(available_cpus(), _MOST_WORKERS), "mimruntime-decode")
        self._running = threading.Lock()

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the engine's outputs for one batch, uint8 (B, H, W, 3).

        Raises:
            EngineError: as `Engine.run`.

        """
        self._engine.check_process()  # before a lock that somebody may have held when the process was forked off
        with self._running:
            return self._engine.run(pixels)

    def outcomes(self, sources: Iterable[Source], output: str) -> Iterator[Outcome]:
        """Yield one outcome per source, in order, with its row of `output`; sources are taken a few batches ahead.

        Raises:
            EngineError: a run failed, or the pipeline is closed.

        """
        self._engine.check_process()
        remaining = iter(sources)
        batch = self.sizes[0]
        window: deque[tuple[Source, Future[np.ndarray]]] = deque()
        try:
            while True:
                missing = _WINDOW_BATCHES * batch - len(window)
                window.extend((source, self._submit(source)) for source in islice(remaining, missing))
                if not window:
                    return
                ready = [window.popleft() for _ in range(min(batch, len(window)))]
                yield from self._run_ready(ready, output)
        finally:
            for _, future in window:
                future.cancel()

    def close(self) -> None:
        """Stop the threads and let the engine go; a second call does nothing."""
        if self._engine.is_inherited:
            return
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._running:
            self._engine.close()

    def _submit(self, source: Source) -> Future[np.ndarray]:
        try:
            return self._pool.submit(self._prepare, source)
        except RuntimeError as error:
            raise EngineError(_CLOSED) from error

    def _run_ready(self, ready: list[tuple[Source, Future[np.ndarray]]], output: str) -> list[Outcome]:
        decoded = [(source, _pixels_or_error(future)) for source, future in ready]
        pixels = [picture for _, picture in decoded if isinstance(picture, np.ndarray)]
        rows = iter(self._infer(pixels, output))
        return [
            Outcome(source, None, picture) if isinstance(picture, ImageError) else Outcome(source, next(rows), None)
            for source, picture in decoded
        ]

    def _infer(self, pixels: list[np.ndarray], output: str) -> list[np.ndarray]:
        waiting = iter(pixels)
        rows: list[np.ndarray] = []
        for size in split(len(pixels), self.sizes):
            batch = np.stack(list(islice(waiting, size)))
            with self._running:
                rows.extend(self._engine.run(batch)[output])
        return rows


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Return `largest` and the powers of two below it, largest first."""
    return (largest, *(1 << power for power in reversed(range((largest - 1).bit_length()))))


def split(count: int, sizes: tuple[int, ...]) -> list[int]:
    """Return sizes, largest first, that sum to `count`.

    Args:
        count: images, 0 or more.
        sizes: what `batch_sizes` gives.

    """
    full, rest = divmod(count, sizes[0])
    return [sizes[0]] * full + [size for size in sizes[1:] if size & rest]


def _pixels_or_error(future: Future[np.ndarray]) -> np.ndarray | ImageError:
    try:
        return future.result()
    except ImageError as error:
        return error
    except CancelledError as error:
        raise EngineError(_CLOSED) from error
