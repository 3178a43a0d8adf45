"""What must hold at every moment, looked at while requests come: /live, memory, descriptors; and at the end, log and metrics."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import service

_EVERY_S = 0.1
_PATIENCE_S = 60.0
MB = 1_000_000


@dataclass
class Seen:
    """Figures of the process, and how long each `/live` took, in s."""

    live_s: list[float] = field(default_factory=list)
    live_wrong: list[str] = field(default_factory=list)
    most_descriptors: int = 0

    def live_ms(self, share: float) -> float:
        """Return the quantile, ms."""
        ranked = sorted(self.live_s)
        return 1000 * ranked[min(int(share * len(ranked)), len(ranked) - 1)] if ranked else float("nan")


class Watch(threading.Thread):
    """Asks for `/live` on a new connection again and again, and counts descriptors, until it is stopped."""

    def __init__(self, watched: service.Service) -> None:
        super().__init__(daemon=True)
        self._service = watched
        self._stop_event = threading.Event()
        self.seen = Seen()

    def run(self) -> None:
        """Look until stopped."""
        while not self._stop_event.wait(_EVERY_S):
            self.seen.most_descriptors = max(self.seen.most_descriptors, descriptors(self._service))
            started = time.monotonic()
            try:
                status = _live(self._service.port)
            except (OSError, http.client.HTTPException) as error:
                self.seen.live_wrong.append(repr(error))
                continue
            self.seen.live_s.append(time.monotonic() - started)
            if status != 200:
                self.seen.live_wrong.append(str(status))

    def stop(self) -> Seen:
        """Return what was seen."""
        self._stop_event.set()
        self.join()
        return self.seen


def _live(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", "/live", headers={"Connection": "close"})
        return connection.getresponse().status
    finally:
        connection.close()


def descriptors(watched: service.Service) -> int:
    """Return how many files and sockets the process has open; 0 where it is gone."""
    try:
        return len(list(Path(f"/proc/{watched.process.pid}/fd").iterdir()))
    except OSError:
        return 0


def settle(figure: Callable[[], int], most: int, seconds: float = 60) -> int:
    """Return the figure once it is `most` or less, or what it is when the time is over."""
    deadline = time.monotonic() + seconds
    while (found := figure()) > most and time.monotonic() < deadline:
        time.sleep(0.2)
    return found
