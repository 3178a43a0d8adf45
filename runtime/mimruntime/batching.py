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
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mimruntime.cpus import decoding_threads
from mimruntime.decode import Source
from mimruntime.decoders import Decoders
from mimruntime.engines.base import Engine
from mimruntime.errors import EngineError, ImageError, OptionError
from mimruntime.times import Times

if TYPE_CHECKING:
    from mimruntime.gpu.coded import GpuJpeg
    from mimruntime.gpu.decoder import GpuDecoder

_AHEAD = 2
"""Batches that are being decoded or waiting beside those that run: enough to overlap, in bounded memory."""
_BATCH_SIZE = 16
"""Where nothing was tuned; 8 are 5 % slower with a small model on a CPU (docs/results/decoding.md)."""
_CLOSED = "this Embedder is closed; use it inside its `with` block"


class NewBatch(enum.Enum):
    """A marker between two sources."""

    NEW_BATCH = "new batch"


NEW_BATCH = NewBatch.NEW_BATCH
"""Start a new batch after it: the last digits of a row may depend on the size of its batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One source with its row of the graph's output, or the error if it has none."""

    source: Source | ImageError
    row: np.ndarray | None
    error: ImageError | None


class BatchPipeline:
    """Decode in worker threads while the engine runs; thread-safe.

    Args:
        engine: an opened engine; `close` closes it.
        decoders: what decodes; `close` closes it.
        sizes: the result of `batch_sizes`.
        workers: threads that decode, or wait for what decodes; None takes one per CPU, at most 32.

    """

    def __init__(self, engine: Engine, decoders: Decoders, sizes: tuple[int, ...], workers: int | None) -> None:
        self.sizes = sizes
        self.times = Times()
        self._engine = engine
        self._decoding = decoders
        self._workers = workers or decoding_threads()
        self._decoders = ThreadPoolExecutor(self._workers, "mimruntime-decode")
        self._window = window(engine)
        self._runners = ThreadPoolExecutor(self._window, "mimruntime-run")
        self._running = threading.BoundedSemaphore(engine.parallel_runs)
        self._closed = False

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the engine's outputs for one batch, uint8 (B, H, W, 3).

        Raises:
            EngineError: as in `Engine.run`.

        """
        self._engine.check_process()  # before the lock: another thread may have held it when the process was forked
        with self._running:
            return self._engine.run(pixels)

    def outcomes(self, sources: Iterable[Source | ImageError | NewBatch], output: str) -> Iterator[Outcome]:
        """Yield one outcome per source, in order, with its row of `output`; sources are read a few batches ahead.

        An ImageError is a source without pixels: it takes a place, so that errors alone are not read without end.

        Raises:
            EngineError: a run failed, or the pipeline is closed.

        """
        self._engine.check_process()
        if self._closed:
            raise EngineError(_CLOSED)
        remaining, spare = iter(sources), list[np.ndarray]()
        flight: deque[tuple[_Batch, Future[list[np.ndarray]]]] = deque()
        try:
            self._take_off(flight, remaining, spare, output)
            while flight:
                batch, landing = flight[0]
                rows = _landed(landing)
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
        if self._engine.is_inherited or self._closed:
            return
        self._closed = True
        for pool in (self._decoders, self._runners):
            pool.shutdown(wait=True, cancel_futures=True)
        with contextlib.ExitStack() as idle:
            for _ in range(self._engine.parallel_runs):
                idle.enter_context(self._running)
            self._engine.close()
        self._decoding.close()

    def _take_off(
        self,
        flight: deque[tuple[_Batch, Future[list[np.ndarray]]]],
        remaining: Iterator[Source | ImageError | NewBatch],
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
            pixels = spare.pop() if spare else self._decoding.allocate((self.sizes[0], *self._engine.pixel_shape))
            batch = _Batch(sources, pixels)
            try:
                sharing = len(batch.sources[: self._workers])
                parts = [self._decoders.submit(batch.decode, self._decoding, sharing) for _ in range(sharing)]
                flight.append((batch, self._runners.submit(self._finish, batch, parts, output)))
            except RuntimeError as error:
                raise EngineError(_CLOSED) from error

    def _finish(self, batch: _Batch, parts: list[Future[float]], output: str) -> list[np.ndarray]:
        """Wait until a batch is decoded, and return the rows of its decoded images."""
        try:
            decoding = sum(part.result() for part in parts)
        except CancelledError as error:
            raise EngineError(_CLOSED) from error
        self.times.add(images=len(batch.sources), decoding=decoding)
        gpu = self._decoding.gpu
        return self._run_pixels(batch.decoded(), output) if gpu is None else self._run_on(gpu, batch, output)

    def _run_on(self, gpu: GpuDecoder, batch: _Batch, output: str) -> list[np.ndarray]:
        """Decode on the GPU what waits for it, and return the rows of all decoded images."""
        with gpu.batch(batch.pixels, batch.coded, batch.errors) as filled:
            self.times.add(decoding=filled.seconds, on_gpu=filled.count - filled.on_cpu, on_cpu=filled.on_cpu)
            if not self._engine.reads_device:
                pixels = batch.pixels[: filled.count]
                gpu.download(filled.address, pixels)
                return self._run_pixels(pixels, output)
            image = batch.pixels[0].nbytes
            run = self._engine.run_on_device
            return self._run_parts(filled.count, lambda first, size: run(filled.address + first * image, size)[output])

    def _run_pixels(self, pixels: np.ndarray, output: str) -> list[np.ndarray]:
        return self._run_parts(len(pixels), lambda first, size: self._engine.run(pixels[first : first + size])[output])

    def _run_parts(self, count: int, run: Callable[[int, int], np.ndarray]) -> list[np.ndarray]:
        """Run `count` images in parts of the usual sizes; `run` gets the first image and the size of a part."""
        rows, engine_s, first = list[np.ndarray](), 0.0, 0
        for size in split(count, self.sizes):
            with self._running:
                started = time.perf_counter()
                rows.extend(run(first, size))
                engine_s += time.perf_counter() - started
            first += size
        self.times.add(engine=engine_s)
        return rows


class _Batch:
    """A batch of sources, which several threads decode into one array.

    Args:
        given: at most B sources, or the errors of those that have none.
        pixels: uint8 (B, H, W, 3), which is overwritten.

    """

    def __init__(self, given: list[Source | ImageError], pixels: np.ndarray) -> None:
        self._given = given
        self.sources = sources = [source for source in given if not isinstance(source, ImageError)]
        self.pixels = pixels
        self.errors: list[ImageError | None] = [None] * len(sources)
        self.coded: list[GpuJpeg | None] = [None] * len(sources)
        self._next = itertools.count()
        self._given_up = False

    def decode(self, decoders: Decoders, sharing: int) -> float:
        """Decode images that no other of `sharing` threads has started; return the seconds it took."""
        started = time.perf_counter()
        # At least two parts for each thread, so that all end at about the same time.
        count = max(1, min(decoders.at_once, len(self.sources) // (2 * sharing)))
        while (first := count * next(self._next)) < len(self.sources) and not self._given_up:
            part = slice(first, first + count)
            for index, prepared in enumerate(decoders.prepare(self.sources[part], self.pixels[part]), first):
                if isinstance(prepared, ImageError):
                    self.errors[index] = prepared
                else:
                    self.coded[index] = prepared
        return time.perf_counter() - started

    def give_up(self) -> None:
        """Make the threads stop after their current image."""
        self._given_up = True

    def decoded(self) -> np.ndarray:
        """Return the pixels of the decoded images, uint8 (≤ B, H, W, 3); call it when all threads are done."""
        good = [index for index, error in enumerate(self.errors) if error is None]
        if len(good) < len(self.sources):
            self.pixels[: len(good)] = self.pixels[good]
        return self.pixels[: len(good)]

    def outcomes(self, rows: Iterable[np.ndarray]) -> list[Outcome]:
        """Return the outcome of all that was given, from the output rows for `decoded`."""
        waiting, errors = iter(rows), iter(self.errors)
        found = ((source, source if isinstance(source, ImageError) else next(errors)) for source in self._given)
        return [Outcome(source, next(waiting) if error is None else None, error) for source, error in found]


def _landed(landing: Future[list[np.ndarray]]) -> list[np.ndarray]:
    try:
        return landing.result()
    except CancelledError as error:
        raise EngineError(_CLOSED) from error


def window(engine: Engine) -> int:
    """Return the largest number of batches that are being decoded, waiting or running."""
    return _AHEAD + engine.parallel_runs


def _next_sources(remaining: Iterator[Source | ImageError | NewBatch], most: int) -> list[Source | ImageError]:
    """Return the sources of the next batch; an empty list if no source is left."""
    taken: list[Source | ImageError] = []
    for source in remaining:
        if not isinstance(source, NewBatch):
            taken.append(source)
        if taken and (len(taken) == most or isinstance(source, NewBatch)):
            break
    return taken


def sizes_for(engine: Engine, batch_size: int | None, workers: int | None, artifact: Path) -> tuple[int, ...]:
    """Return `batch_sizes` of the size that was asked for, or as tuned.

    Raises:
        OptionError: a number is below 1, or the engine does not support the size.

    """
    size = batch_size if batch_size is not None else engine.best_batch or _BATCH_SIZE
    if size < 1 or (workers is not None and workers < 1):
        raise OptionError(f"batch_size and workers must be at least 1, got {size} and {workers}")
    if engine.largest_batch is not None and size > engine.largest_batch:
        raise OptionError(
            f"batch_size {size}: {engine.compiled or engine.name} runs {engine.largest_batch} images at most;"
            f" ask for fewer, or run: mimexport compile {artifact} --engine {engine.name} --batch 1,{size},{size}"
        )
    return batch_sizes(size)


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
