"""Where the service's log goes, in which form, and how a line that repeats itself does not fill the disk."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
import threading

ACCESS = "mimexport.access"
"""Name of the logger that has a line for every request."""
FIELDS = "fields"
"""Name of a record's attribute, a dict: what a line in JSON has beside time, level and message."""
_WINDOW_S = 10.0
_MOST_LINES = 1000


def set_up_logs(*, as_json: bool) -> None:
    """Send the log to stderr; with `as_json`, every line is JSON, and there is one for each request."""
    root, access = logging.getLogger(), logging.getLogger(ACCESS)
    formatter = JsonFormatter() if as_json else None
    if not root.handlers:
        root.setLevel(logging.INFO)
        root.addHandler(CountingHandler(formatter))
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # Its warnings quote what strangers send, a new line for each; the request gets 400 and says why.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    access.setLevel(logging.INFO if as_json else logging.WARNING)
    access.propagate = False
    if as_json:
        logging.captureWarnings(True)
        threading.excepthook = _log_end_of_thread
        if not access.handlers:
            access.addHandler(logging.StreamHandler(sys.stderr))
            access.handlers[0].setFormatter(formatter)


class JsonFormatter(logging.Formatter):
    """A line of JSON: `time` in UTC, `level`, `message`, what is in `fields`, and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        entry = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        entry |= getattr(record, FIELDS, {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class CountingHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr; what is said again within 10 s is counted and said once more, with the count, after them."""

    def __init__(self, formatter: logging.Formatter | None = None) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(formatter or logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
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


def _log_end_of_thread(end: threading.ExceptHookArgs) -> None:
    """Log what ended a thread; Python would write it to stderr as it is."""
    name = end.thread.name if end.thread else "unknown"
    error = (end.exc_type, end.exc_value or end.exc_type(), end.exc_traceback)
    logging.getLogger("mimexport").error("thread %s ended", name, exc_info=error)
