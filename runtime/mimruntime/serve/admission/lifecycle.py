"""The life of the service: the number of open requests, and whether new ones are accepted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from mimruntime.exit import end_now
from mimruntime.serve.problems import Problem

_LOG = logging.getLogger("mimexport")
_TICK_S = 0.05
_OVER_S = 1.0
"""Seconds after the grace period to close connections and engines; then the process ends anyway."""


class Lifecycle:
    """Draining: accepted requests are answered, later ones get 503, then the server stops."""

    def __init__(self, grace_s: float) -> None:
        self.draining = False
        self._grace_s = grace_s
        self._open = 0
        self._stopping: asyncio.Task[None] | None = None

    def check_open(self) -> None:
        """Raise a 503 if the service is draining."""
        if self.draining:
            raise Problem(503, "draining", "the service is shutting down", retry_after_s=1)

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as open."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def install(self) -> None:
        """Drain at SIGTERM and Ctrl-C before the server's own handler runs; call it after that handler is installed.

        A second Ctrl-C ends the draining.
        """
        server_stops = signal.getsignal(signal.SIGTERM)
        loop = asyncio.get_running_loop()

        async def drain(number: int, frame: FrameType | None) -> None:
            self.draining = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._grace_s):
                    while self._open:
                        await asyncio.sleep(_TICK_S)
            stop(number, frame)

        def stop(number: int, frame: FrameType | None) -> None:
            if callable(server_stops):
                server_stops(number, frame)

        def begin(number: int, frame: FrameType | None) -> None:
            if self._stopping is None:
                _LOG.info("the service ends; %d open requests have %g s", self._open, self._grace_s)
                _end_after(self._grace_s + _OVER_S, number)
                self._stopping = loop.create_task(drain(number, frame))
            elif number == signal.SIGINT:
                stop(number, frame)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *received: loop.call_soon_threadsafe(begin, *received) and None)


def _end_after(seconds: float, number: int) -> None:
    """End the process after this time if it still runs; do not wait for threads that decode or run an engine."""
    timer = threading.Timer(seconds, _end, (128 + number if number == signal.SIGINT else 0,))
    timer.daemon = True
    timer.start()


def _end(code: int) -> None:
    _LOG.error("the grace is over; the process ends whatever still runs in it")
    end_now(code)
