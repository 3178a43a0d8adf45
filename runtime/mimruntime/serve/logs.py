"""The service's log: its destination, its format, and a limit on repeated lines."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
import threading

ACCESS = "mimexport.access"
"""Name of the logger that writes one line per request."""
FIELDS = "fields"
"""Name of a record's attribute: a dict of further fields for a line in JSON."""
_WINDOW_S = 10.0
_MOST_LINES = 1000


def set_up_logs(*, as_json: bool) -> None:
    """Send the log to stderr; with `as_json`, every line is JSON, and each request gets a line."""
    root, access = logging.getLogger(), logging.getLogger(ACCESS)
    formatter = JsonFormatter() if as_json else None
    if not root.handlers:
        root.setLevel(logging.INFO)
        root.addHandler(CountingHandler(formatter))
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # Its warnings quote client text, so each line differs; the request gets 400 with the reason anyway.
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
    """Format a record as a line of JSON: `time` in UTC, `level`, `message`, the entries of `fields`, and any `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        entry = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        entry |= getattr(record, FIELDS, {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class CountingHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Write to stderr; count repeats of a line within 10 s, then write it once more with the count."""

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
        """Write the counts of lines whose window is over, or of all lines if there are too many, and forget these lines."""
        over = [line for line, (until, _) in self._said.items() if until <= now or len(self._said) > _MOST_LINES]
        for level, text in over:
            _, count = self._said.pop((level, text))
            if count:
                again = f"{count} more within {_WINDOW_S:g} s: {text}"
                super().emit(logging.LogRecord("mimexport", level, "", 0, again, None, None))


def _log_end_of_thread(end: threading.ExceptHookArgs) -> None:
    """Log the exception that ended a thread; Python would write it to stderr unformatted."""
    name = end.thread.name if end.thread else "unknown"
    error = (end.exc_type, end.exc_value or end.exc_type(), end.exc_traceback)
    logging.getLogger("mimexport").error("thread %s ended", name, exc_info=error)
