"""Where the service's log goes, and how a line that repeats itself does not fill the disk."""

from __future__ import annotations

import logging
import sys

_WINDOW_S = 10.0
_MOST_LINES = 1000


def set_up_logs(*, as_json: bool) -> None:
    """Send the log to stderr; with `as_json`, one JSON line per request too."""
    root = logging.getLogger()
    if not root.handlers:
        root.setLevel(logging.INFO)
        root.addHandler(CountingHandler())
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # Its warnings quote what strangers send, a new line for each; the request gets 400 and says why.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    access = logging.getLogger("mimexport.access")
    access.setLevel(logging.INFO if as_json else logging.WARNING)
    access.propagate = False
    if as_json and not access.handlers:
        access.addHandler(logging.StreamHandler(sys.stderr))


class CountingHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr; what is said again within 10 s is counted and said once more, with the count, after them."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._said: dict[tuple[int, str], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write or count one record."""
        self._write_counts(record.created)
        line = record.levelno, record.getMessage()
        until, count = self._said.get(line, (record.created + _WINDOW_S, -1))
        self._said[line] = until, count + 1
        if count < 0:
            super().emit(record)

    def close(self) -> None:
        """Write the counts that are left."""
        self._write_counts(float("inf"))
        super().close()

    def _write_counts(self, now: float) -> None:
        """Forget the lines whose window is over, all where they are too many."""
        over = [line for line, (until, _) in self._said.items() if until <= now or len(self._said) > _MOST_LINES]
        for level, text in over:
            _, count = self._said.pop((level, text))
            if count:
                again = f"{count} more within {_WINDOW_S:g} s: {text}"
                super().emit(logging.LogRecord("mimexport", level, "", 0, again, None, None))
