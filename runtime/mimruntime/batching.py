"""The pipeline from sources to output rows: decoding, engine runs and the consumer of the rows overlap."""

from __future__ import annotations

import contextlib
import enum
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mimruntime.cpus import decoding_threads
from mimruntime.decode import Source
from mimruntime.engines.base import Engine
from mimruntime.errors import EngineError, ImageError
from mimruntime.times import Times

_AHEAD = 2
"""Batches that are being decoded or waiting beside those that run: enough to overlap, in bounded memory."""
_CLOSED = "this Embedder is closed; use it inside its `with` block"


class NewBatch(enum.Enum):
    """A marker between two sources."""

    NEW_BATCH = "new batch"


NEW_BATCH = NewBatch.NEW_BATCH
"""Start a new batch after it: the last digits of a row may depend on the size of its batch."""

Prepare = Callable[..., object]
"""Write the pixels of a source into `out`, a row of a batch, uint8 (H, W, 3); ImageError if it is not an image."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One source with its row of the graph's output, or the error if it has none."""

    source: Source
    row: np.ndarray | None
    error: ImageError | None


class BatchPipeline:
    """Decode in worker threads while the engine runs; thread-safe.

    Args:
        engine: an opened engine; `close` closes it.
        prepare: decodes a source to pixels.
        sizes: the result of `batch_sizes`.
        workers: decoding threads; None takes one per CPU, at most 32.

    """

    def __init__(self, engine: Engine, prepare: Prepare, sizes: tuple[int, ...], workers: int | None) -> None:
        self.sizes = sizes
        self.times = Times()
        self._engine = engine
        self._prepare = prepare
        self._workers = workers or decoding_threads()
        self._decoders = ThreadPoolExecutor(self._workers, "mimruntime-decode")
        self._window = _AHEAD + engine.parallel_runs
        self._runners = ThreadPoolExecutor(self._window, "mimruntime-run")
        self._running = threading.BoundedSemaphore(engine.parallel_runs)

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the engine's outputs for one batch, uint8 (B, H, W, 3).

        Raises:
            EngineError: as in `Engine.run`.

        """
        self._engine.check_process()  # before the lock: another thread may have held it when the process was forked
        with self._running:
            return self._engine.run(pixels)

    def outcomes(self, sources: Iterable[Source | NewBatch], output: str) -> Iterator[Outcome]:
        """Yield one outcome per source, in order, with its row of `output`; sources are read a few batches ahead.

        Raises:
            EngineError: a run failed, or the pipeline is closed.

        """
        self._engine.check_process()
        remaining, spare = iter(sources), list[np.ndarray]()
        flight: deque[tuple[_Batch, Future[list[np.ndarray]]]] = deque()
        try:
            self._take_off(flight, remaining, spare, output)
            while flight:
                batch, landing = flight[0]
                rows = landing.result()
                spare.append(batch.pixels)
                flight.popleft()
                self._take_off(
                    flight, remaining, spare, output
                )  # before the rows are yielded, since the consumer may take long
                yield from batch.outcomes(rows)
        finally:
            for batch, landing in flight:
                batch.give_up()
                landing.cancel()

    def close(self) -> None:
        """Stop the threads and close the engine; a second call does nothing."""
        if self._engine.is_inherited:
            return
        for pool in (self._decoders, self._runners):
            pool.shutdown(wait=True, cancel_futures=True)
        with contextlib.ExitStack() as idle:
            for _ in range(self._engine.parallel_runs):
                idle.enter_context(self._running)
            self._engine.close()

    def _take_off(
        self,
        flight: deque[tuple[_Batch, Future[list[np.ndarray]]]],
        remaining: Iterator[Source | NewBatch],
        spare: list[np.ndarray],
        output: str,
    ) -> None:
        """Start batches until the window is full or no source is left."""
        while len(flight) < self._window:
            started = time.perf_counter()
            sources = _next_sources(remaining, self.sizes[0])
            self.times.add(reading=time.perf_counter() - started)
            if not sources:
                return
            pixels = spare.pop() if spare else np.empty((self.sizes[0], *self._engine.pixel_shape), np.uint8)
            batch = _Batch(sources, pixels)
            try:
                parts = [self._decoders.submit(batch.decode, self._prepare) for _ in sources[: self._workers]]
                flight.append((batch, self._runners.submit(self._finish, batch, parts, output)))
            except RuntimeError as error:
                raise EngineError(_CLOSED) from error

    def _finish(self, batch: _Batch, parts: list[Future[float]], output: str) -> list[np.ndarray]:
        """Wait until a batch is decoded, and return the rows of its decoded images."""
        try:
            decoding = sum(part.result() for part in parts)
        except CancelledError as error:
            raise EngineError(_CLOSED) from error
        pixels, rows, engine_s = batch.decoded(), list[np.ndarray](), 0.0
        first = 0
        for size in split(len(pixels), self.sizes):
            with self._running:
                started = time.perf_counter()
                rows.extend(self._engine.run(pixels[first : first + size])[output])
                engine_s += time.perf_counter() - started
            first += size
        self.times.add(images=len(batch.sources), decoding=decoding, engine=engine_s)
        return rows


class _Batch:
    """A batch of sources, which several threads decode into one array.

    Args:
        sources: at most B.
        pixels: uint8 (B, H, W, 3), which is overwritten.

    """

    def __init__(self, sources: list[Source], pixels: np.ndarray) -> None:
        self.sources = sources
        self.pixels = pixels
        self._errors: list[ImageError | None] = [None] * len(sources)
        self._next = itertools.count()
        self._given_up = False

    def decode(self, prepare: Prepare) -> float:
        """Decode images that no other thread has started, one by one; return the seconds it took."""
        started = time.perf_counter()
        while (index := next(self._next)) < len(self.sources) and not self._given_up:
            try:
                prepare(self.sources[index], out=self.pixels[index])
            except ImageError as error:
                self._errors[index] = error
        return time.perf_counter() - started

    def give_up(self) -> None:
        """Make the threads stop after their current image."""
        self._given_up = True

    def decoded(self) -> np.ndarray:
        """Return the pixels of the decoded images, uint8 (≤ B, H, W, 3); call it when all threads are done."""
        good = [index for index, error in enumerate(self._errors) if error is None]
        if len(good) < len(self.sources):
            self.pixels[: len(good)] = self.pixels[good]
        return self.pixels[: len(good)]

    def outcomes(self, rows: Iterable[np.ndarray]) -> list[Outcome]:
        """Return the outcome of every source, given the output rows for `decoded`."""
        waiting = iter(rows)
        return [
            Outcome(source, next(waiting) if error is None else None, error)
            for source, error in zip(self.sources, self._errors, strict=True)
        ]


def _next_sources(remaining: Iterator[Source | NewBatch], most: int) -> list[Source]:
    """Return the sources of the next batch; an empty list if no source is left."""
    taken: list[Source] = []
    for source in remaining:
        if not isinstance(source, NewBatch):
            taken.append(source)
        if taken and (len(taken) == most or isinstance(source, NewBatch)):
            break
    return taken


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Return `largest` and the powers of two below it, largest first."""
    return (largest, *(1 << power for power in reversed(range((largest - 1).bit_length()))))


def split(count: int, sizes: tuple[int, ...]) -> list[int]:
    """Return sizes, largest first, that sum to `count`.

    Args:
        count: number of images, 0 or more.
        sizes: the result of `batch_sizes`.

    """
    full, rest = divmod(count, sizes[0])
    return [sizes[0]] * full + [size for size in sizes[1:] if size & rest]
