"""The thread that runs an engine: warm-up, batches, and recovery when the engine fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain, repeat

import numpy as np

from mimruntime.embedder import Embedder
from mimruntime.engines.base import EMBEDDING, SELECTION
from mimruntime.errors import EngineError, ImageError
from mimruntime.serve.admission.queue import AdmissionQueue, EmbeddingResult, Item
from mimruntime.serve.execution.statistics import Statistics
from mimruntime.serve.metrics import Metrics

_LOG = logging.getLogger("mimexport")
_SAME = 0.999
"""Cosine of the probe's vectors below which the engine counts as failed."""
_PAUSES_S = (0.5, 1, 2, 4, 8, 16, 30)


class Executor(threading.Thread):
    """Take batches from a queue and run them in an engine; reopen the engine when it fails."""

    def __init__(
        self,
        name: str,
        embedder: Embedder,
        reopen: Callable[[], Embedder],
        queue: AdmissionQueue,
        metrics: Metrics,
        *,
        patience_s: float,
        watchdog_s: float,
    ) -> None:
        super().__init__(name="mimexport-executor")
        about = embedder.describe()
        self._model = name
        self._sizes = about.batch_sizes
        # On a CPU padding costs as much as images, so batches fill a size; elsewhere an extra run costs more than padding.
        self._pads = about.provider != "cpu"
        self._embedder = embedder
        self._reopen = reopen
        self._queue = queue
        self._metrics = metrics
        self._patience_s = patience_s
        self._watchdog_s = watchdog_s
        edge = embedder.artifact.manifest.preprocess.size
        self._batch = np.zeros(
            (self._sizes[0], edge, edge, 3), np.uint8
        )  # reused; the content of the padding does not matter
        self._probe = np.random.default_rng(0).integers(0, 256, (edge, edge, 3), np.uint8)
        self._probe_vector: np.ndarray | None = None
        self.statistics = Statistics()
        self._running_since: float | None = None
        self._ready = False
        self._stopping = threading.Event()

    @property
    def ready(self) -> bool:
        """Whether the engine is warm, has not failed and is not stuck, and this thread is alive."""
        return self._ready and self.is_alive() and not self.stuck

    @property
    def stuck(self) -> bool:
        """Whether a run takes longer than the watchdog's limit, or this thread died: only a restart of the process helps."""
        if self.ident is not None and not self.is_alive() and not self._stopping.is_set():
            return True
        since = self._running_since
        return since is not None and time.monotonic() - since > self._watchdog_s

    def run(self) -> None:
        """Serve the queue until it is closed."""
        try:
            self._warm_up()
        except EngineError as error:
            self._rebuild(error)
        while (batch := self._take()) is not None:
            if batch:
                self._serve(batch)
            else:
                self._watch()
        self._set_ready(False)
        self._embedder.close()

    def stop(self) -> None:
        """Let the thread finish the queue and close its engine; does not wait."""
        self._stopping.set()
        self._queue.close()
        if self.ident is None:
            self._embedder.close()

    def _take(self) -> list[Item] | None:
        batch = self._queue.take(self._sizes[0], self._how_many, patience_s=self._patience_s, idle_s=self._watchdog_s)
        self._metrics.queue_length.labels(self._model).set(self._queue.queued)
        return batch

    def _how_many(self, waiting: int) -> int:
        return waiting if self._pads else next(size for size in self._sizes if size <= waiting)

    def _serve(self, batch: list[Item]) -> None:
        """Run a batch; if it fails, run each half; if a half fails too, answer 503 and reopen the engine."""
        mine = [item for item in batch if item.future.set_running_or_notify_cancel()]
        if not mine:
            return
        error = self._attempt(mine)
        if error is None:
            return
        _LOG.warning("%s: a batch of %d failed; retrying in halves: %s", self._model, len(mine), error)
        middle = (len(mine) + 1) // 2
        failures = [(half, self._attempt(half)) for half in (mine[:middle], mine[middle:]) if half]
        last = next((failure for _, failure in failures if failure), None)
        if last is None:
            return
        # Before the answers: a client that gets a 503 and then asks for readiness must not read that the service is ready.
        self._set_ready(False)
        for half, failure in failures:
            for item in half if failure else ():
                item.future.set_exception(failure)
        self._rebuild(last)

    def _attempt(self, items: list[Item]) -> EngineError | None:
        """Answer `items` by one run of the engine, or return the error of the run."""
        started = time.monotonic()
        try:
            outputs = self._run([item.pixels for item in items if item.pixels is not None])
        except EngineError as error:
            return error
        seconds = time.monotonic() - started
        self._record(items, started, seconds)
        selections = outputs.get(SELECTION, [None] * len(items))
        for item, row, selection in zip(items, outputs[EMBEDDING], selections, strict=False):
            if np.isfinite(row).all():
                wait_s = started - item.ready_at
                item.future.set_result(EmbeddingResult(row, item.decode_s, wait_s, seconds, selection))
            else:
                item.future.set_exception(ImageError("has no vector: what the model computes for it is not finite"))
        return None

    def _run(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Run B images, uint8 (size, size, 3), padded to the next batch size; return the outputs, float32 (≥ B, …)."""
        size = min(size for size in self._sizes if size >= len(images))
        self._running_since = time.monotonic()
        try:
            np.stack(images, out=self._batch[: len(images)])
            return self._embedder.outputs(self._batch[:size])
        except EngineError:
            raise
        except Exception as error:  # MemoryError and any error of a library count as failures of the engine
            raise EngineError(f"the engine failed: {type(error).__name__}: {error}") from error
        finally:
            self._running_since = None

    def _record(self, items: list[Item], started: float, seconds: float) -> None:
        self._queue.observe(seconds, len(items))
        self.statistics.ran(len(items), seconds)
        self._metrics.inference_seconds.labels(self._model).observe(seconds)
        self._metrics.batch_size.labels(self._model).observe(len(items))
        self._metrics.images.labels(self._model).inc(len(items))
        for item in items:
            self._metrics.decode_seconds.labels(self._model).observe(item.decode_s)
            self._metrics.queue_seconds.labels(self._model).observe(started - item.ready_at)

    def _warm_up(self) -> None:
        """Run every batch size once, so that no request pays for a first run."""
        for size in self._sizes:
            row = self._run([self._probe] * size)[EMBEDDING][0]
        if self._probe_vector is None:
            self._probe_vector = row
        self._check_probe(row)
        self._set_ready(True)

    def _watch(self) -> None:
        """Run a test inference on an idle engine."""
        try:
            self._check_probe(self._run([self._probe])[EMBEDDING][0])
        except EngineError as error:
            self._rebuild(error)

    def _check_probe(self, row: np.ndarray) -> None:
        """Compare the probe's vector with the one at the start; a reopened engine must give it too."""
        cosine = float(row @ self._probe_vector)
        if not cosine > _SAME:
            raise EngineError(f"the probe's vector changed: cosine {cosine:.4f} to that at the start")

    def _rebuild(self, cause: EngineError) -> None:
        """Close and reopen the engine until it works or the service ends."""
        self._set_ready(False)
        for pause_s in chain(_PAUSES_S, repeat(_PAUSES_S[-1])):
            _LOG.error("%s: reopening the engine: %s", self._model, cause)
            self._metrics.rebuilds.labels(self._model).inc()
            try:
                self._embedder.close()
                self._embedder = self._reopen()
                self._warm_up()
                return
            except Exception as error:  # any cause may be temporary
                _LOG.exception("%s: the engine does not open; next try in %.1f s", self._model, pause_s, exc_info=error)
            if self._stopping.wait(pause_s):
                return

    def _set_ready(self, ready: bool) -> None:
        self._ready = ready
        self._metrics.ready.labels(self._model).set(ready)
