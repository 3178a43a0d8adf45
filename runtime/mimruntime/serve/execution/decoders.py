"""The decoding threads of a process, shared by all models; they do not keep the process from ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue


class Decoders:
    """A pool of daemon threads; neither `close` nor the interpreter waits for a thread that hangs.

    Args:
        count: threads.

    """

    def __init__(self, count: int) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._busy_since: list[float | None] = [None] * count
        for index in range(count):
            threading.Thread(target=self._run, args=(index,), name=f"mimexport-decode-{index}", daemon=True).start()

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work` in the next free thread; it must not raise."""
        self._queue.put(work)

    def stuck(self, seconds: float) -> bool:
        """Return whether every thread has been busy with one image for at least `seconds`."""
        now = time.monotonic()
        return all(since is not None and now - since >= seconds for since in self._busy_since.copy())

    def close(self) -> None:
        """End the threads after their current work; waiting work is dropped."""
        while not self._queue.empty():
            self._queue.get()
        for _ in self._busy_since:
            self._queue.put(None)

    def _run(self, index: int) -> None:
        while (work := self._queue.get()) is not None:
            self._busy_since[index] = time.monotonic()
            work()
            self._busy_since[index] = None
            del work  # it holds an image
