"""One artifact being served: sources in, vectors out, within the limits."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from mimruntime.decoding.budget import MemoryBudget
from mimruntime.embedder import Embedder
from mimruntime.errors import ImageError, MimError, OptionError, PrecisionError, SpaceError
from mimruntime.manifest import Manifest
from mimruntime.results import Description
from mimruntime.serve.admission.queue import AdmissionQueue, EmbeddingResult, Item, QueueFullError
from mimruntime.serve.execution.datauri import decode_base64
from mimruntime.serve.execution.decoders import Decoders
from mimruntime.serve.execution.executor import Executor
from mimruntime.serve.execution.opening import open_embedder
from mimruntime.serve.metrics import Metrics
from mimruntime.serve.problems import Problem, from_error
from mimruntime.serve.settings import Settings
from mimruntime.storage import Codec, Store, codec_for

Source = bytes | str | np.ndarray | Problem
"""An encoded file, base64 or a data URI of one, pixels for the graph, uint8 (size, size, 3), or the problem of an image."""
Outcome = EmbeddingResult | Problem
"""The result of one image: its vector or its problem."""


class Model:
    """An opened artifact with its queue and its executor; `embed` is called from the event loop."""

    def __init__(
        self,
        name: str,
        embedder: Embedder,
        settings: Settings,
        metrics: Metrics,
        decoders: Decoders,
        budget: MemoryBudget,
    ) -> None:
        self.about: Description = replace(embedder.describe(), name=name)
        self.manifest: Manifest = embedder.artifact.manifest
        self.queue = AdmissionQueue(settings.max_queue, settings.deadline_s)
        rows, columns = self.manifest.backbone.grid
        self.tokens = rows * columns + self.manifest.backbone.prefix_tokens
        self.has_selection = embedder.has_selection
        self._embedder = embedder
        self._settings = settings
        self._metrics = metrics
        self._decoders = decoders
        self._budget = budget
        self.executor = Executor(
            name,
            embedder,
            partial(open_embedder, embedder.artifact.path, settings, embedder.space),
            self.queue,
            metrics,
            patience_s=settings.max_delay_ms / 1000,
            watchdog_s=settings.watchdog_s,
        )
        self.statistics = self.executor.statistics
        metrics.describe(self.about)

    def codec(self, store: Store, dimensions: int | None, *, param: str) -> Codec:
        """Return the codec for a request's vectors; `param` is the request's name for the store.

        Raises:
            Problem: 400, the vectors cannot be cut to `dimensions`, or the artifact lacks the figures for the store.

        """
        try:
            whole = codec_for(self.manifest, dim=dimensions)
        except OptionError as error:
            raise Problem(400, "dimensions", str(error), param="dimensions") from error
        try:
            return whole if store == "fp32" else codec_for(self.manifest, store, dimensions)
        except OptionError as error:
            raise Problem(400, "output_dtype", str(error), param=param) from error

    def check_space(self, codec: Codec, expected: str | None) -> None:
        """Raise SpaceError if a request expects another embedding space than that of its vectors."""
        if expected is not None and expected != codec.space:
            raise SpaceError(f"model '{self.about.name}' embeds into space {codec.space}, expected {expected}")

    def check_precision(self, expected: str | None) -> None:
        """Raise PrecisionError if a request expects another precision than the one that runs."""
        if expected is not None and expected != self.about.precision:
            raise PrecisionError(f"model '{self.about.name}' computes in {self.about.precision}, expected {expected}")

    def check_selection(self, *, param: str) -> None:
        """Raise a 400 if the graph does not output weights of the patches."""
        if not self.has_selection:
            name = self.about.name
            text = f"model '{name}' has no output 'selection'; its artifact must be built with --with-selection"
            raise Problem(400, "selection", text, param=param)

    def check_ready(self) -> None:
        """Raise a 503 while the engine warms up, is reopened or is stuck, or while decoding is stuck."""
        if not self.executor.ready:
            raise Problem(503, "not_ready", f"model '{self.about.name}' is not ready", retry_after_s=1)
        deadline_s = self._settings.deadline_s
        if self._decoders.stuck(deadline_s):
            text = f"all decoding threads have been busy with one image for more than {deadline_s:g} s"
            raise Problem(503, "decoding_stuck", text, retry_after_s=1)

    @property
    def decoding_lost(self) -> bool:
        """Whether all decoding threads have been stuck for so long that only a restart helps."""
        return self._decoders.stuck(self._settings.deadline_s + self._settings.watchdog_s)

    def check_room(self) -> None:
        """Raise a 429 if there is no room for a request; called before its body is read, and again before decoding."""
        try:
            self.queue.check_room()
        except QueueFullError as error:
            raise Problem(429, "queue_full", str(error), retry_after_s=error.retry_after_s) from error

    def check_request(self, count: int) -> None:
        """Raise the problem of a request of `count` images that needs no decoding to be known."""
        most = self._settings.max_items
        if count > most:
            raise Problem(413, "too_many_items", f"{count} images in one request; at most {most}")
        self.check_ready()
        self.check_room()

    async def embed(self, sources: Sequence[Source], *, param: str = "input", by_item: bool = False) -> list[Outcome]:
        """Return the result of every source, in order; if the caller is cancelled, its images are too.

        Args:
            sources: at least one.
            param: the request's name for the list, for errors.
            by_item: for an image at fault, return its problem in its place, and embed the others.

        Raises:
            Problem: 400, 413 or 415 for the first image at fault; 429 no room; 503 not ready; 504 too late.

        """
        self.check_request(len(sources))
        ahead_s = self.queue.wait_s
        items = self.queue.admit(len(sources))
        self._count_in_flight()
        started = time.monotonic()
        for item, source in zip(items, sources, strict=True):
            item.future.add_done_callback(self._count_in_flight)
            self._decoders.submit(partial(self._prepare, item, source))
        try:
            outcomes = await self._gather(items, param, by_item, ahead_s)
            results = [each for each in outcomes if isinstance(each, EmbeddingResult)]
            self.statistics.succeeded(time.monotonic() - started, results)
            return outcomes
        except Exception:
            self.statistics.failed(time.monotonic() - started)
            raise
        finally:
            for item in items:
                item.future.cancel()

    async def _gather(
        self, items: Sequence[Item], param: str, by_item: bool = False, ahead_s: float = 0.0
    ) -> list[Outcome]:
        futures = [asyncio.wrap_future(item.future) for item in items]
        until = asyncio.ALL_COMPLETED if by_item else asyncio.FIRST_EXCEPTION
        try:
            _, pending = await asyncio.wait(futures, timeout=self._settings.deadline_s, return_when=until)
        finally:  # fetch every exception, or asyncio logs it as never retrieved
            errors = [None if future.cancel() or future.cancelled() else future.exception() for future in futures]
        problems: dict[int, Problem] = {}
        for index, error in enumerate(errors):
            if isinstance(error, ImageError):
                problems[index] = from_error(type(error)(f"image {index}: {error}"), param=f"{param}[{index}]")
            elif isinstance(error, Problem):
                problems[index] = error
            elif error is not None:
                raise error
        if problems and not by_item:
            raise next(iter(problems.values()))
        if pending:
            # Retry only if other requests were ahead; a request that takes too long alone would fail again.
            retry_after_s = math.ceil(ahead_s) or None
            text = f"not done within {self._settings.deadline_s:g} s"
            raise Problem(504, "deadline", text, retry_after_s=retry_after_s)
        return [problems.get(index) or future.result() for index, future in enumerate(futures)]

    def _prepare(self, item: Item, source: Source) -> None:
        """Decode one image in a thread of the pool and queue it."""
        if item.future.cancelled():
            return
        started = time.monotonic()
        try:
            item.pixels = self._pixels(source)
        except Problem as problem:  # of a URL that could not be fetched
            _fail(item, problem)
            return
        except ImageError as error:
            # A new error without traceback, whose frames would keep the image in memory until the next garbage collection.
            _fail(item, type(error)(str(error)))
            return
        except Exception as error:
            _fail(item, ImageError(f"cannot be read ({type(error).__name__})"))
            return
        item.decode_s = time.monotonic() - started
        self.queue.put(item)

    def _pixels(self, source: Source) -> np.ndarray:
        if isinstance(source, np.ndarray):
            return source
        if isinstance(source, Problem):
            raise source
        encoded = decode_base64(source) if isinstance(source, str) else source
        return self._embedder.prepare(
            encoded, max_pixels=self._settings.max_pixels, formats=self._settings.formats, budget=self._budget
        )

    def _count_in_flight(self, _: object = None) -> None:
        self._metrics.in_flight.labels(self.about.name).set(self.queue.in_flight)


def _fail(item: Item, error: MimError | Problem) -> None:
    """Set `error` as the result if the caller still waits."""
    if item.future.set_running_or_notify_cancel():
        item.future.set_exception(error)
