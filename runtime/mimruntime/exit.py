"""End the program even if threads do not stop."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from typing import NoReturn

_LOG = logging.getLogger("mimexport")
_WAIT_S = 5.0


def leave(code: int) -> NoReturn:
    """End the program with exit status `code`.

    Python waits for all threads at exit, so that engines are closed before their libraries are unloaded. After 5 s, or at
    the next SIGTERM or Ctrl-C, the process ends without waiting for threads, such as one that decodes a hostile image.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):  # only the main thread may set a handler
            signal.signal(number, lambda *_: end_now(code))
    with contextlib.suppress(RuntimeError):  # threads can no longer be started
        threading.Thread(target=_end_later, args=(code,), name="mimexport-end", daemon=True).start()
    sys.exit(code)


def _end_later(code: int) -> None:
    threading.main_thread().join()
    time.sleep(_WAIT_S)
    names = ", ".join(thread.name for thread in threading.enumerate() if thread.is_alive() and not thread.daemon)
    _LOG.error("the program ends without waiting for threads that did not stop within %g s: %s", _WAIT_S, names)
    end_now(code)


def end_now(code: int) -> NoReturn:
    """End the process with exit status `code` without waiting for threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
