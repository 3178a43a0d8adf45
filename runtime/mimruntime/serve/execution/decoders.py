"""The threads that decode for all models of a process; none of them keeps the process from ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue


class Decoders:
    """A pool of daemon threads: one that does not come back is waited for neither by `close` nor by the interpreter.

    Args:
        count: threads.

    """

    def __init__(self, count: int) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._busy_since: list[float | None] = [None] * count
        for index in range(count):
            threading.Thread(target=self._run, args=(index,), name=f"mimexport-decode-{index}", daemon=True).start()

    def submit(self, work: Callable[[], None]) -> None:
        """Have `work` done by the next thread that is free; it must not raise."""
        self._queue.put(work)

    def stuck(self, seconds: float) -> bool:
        """Tell whether every thread has been busy with one image for at least so long."""
        now = time.monotonic()
        return all(since is not None and now - since >= seconds for since in self._busy_since.copy())

    def close(self) -> None:
        """Let the threads end after what they do now; what waits is dropped."""
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
