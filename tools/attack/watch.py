"""Monitor a service during an attack: /live, memory and descriptors."""

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
    """Figures of the process, and the duration of each `/live` request in seconds."""

    live_s: list[float] = field(default_factory=list)
    live_wrong: list[str] = field(default_factory=list)
    most_descriptors: int = 0

    def live_ms(self, share: float) -> float:
        """Return the quantile `share` of the duration of `/live`, ms."""
        ranked = sorted(self.live_s)
        return 1000 * ranked[min(int(share * len(ranked)), len(ranked) - 1)] if ranked else float("nan")


class Watch(threading.Thread):
    """Requests `/live` repeatedly on new connections, and counts descriptors, until it is stopped."""

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
        """Stop, and return the figures."""
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
    """Return the number of open files and sockets of the process; 0 if it has ended."""
    try:
        return len(list(Path(f"/proc/{watched.process.pid}/fd").iterdir()))
    except OSError:
        return 0


def settle(figure: Callable[[], int], most: int, seconds: float = 60) -> int:
    """Wait until the figure is at most `most` or the time is over; return it."""
    deadline = time.monotonic() + seconds
    while (found := figure()) > most and time.monotonic() < deadline:
        time.sleep(0.2)
    return found
