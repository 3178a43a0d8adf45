"""Where the service's log goes."""

from __future__ import annotations

import logging
import sys


def set_up_logs(*, as_json: bool) -> None:
    """Send the log to stderr; with `as_json`, one JSON line per request too."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    access = logging.getLogger("mimexport.access")
    access.setLevel(logging.INFO if as_json else logging.WARNING)
    access.propagate = False
    if as_json and not access.handlers:
        access.addHandler(logging.StreamHandler(sys.stderr))
