"""The end of the program, which no thread can put off for ever."""

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

    Python waits at its end for every thread, so that engines are closed before their libraries are taken down. A thread
    that has not ended 5 s later, such as one that decodes a hostile image, ends with the process; so do all at the next
    SIGTERM or Ctrl-C.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):  # only the main thread may set it
            signal.signal(number, lambda *_: end_now(code))
    with contextlib.suppress(RuntimeError):  # no thread can be started any more
        threading.Thread(target=_end_later, args=(code,), name="mimexport-end", daemon=True).start()
    sys.exit(code)


def _end_later(code: int) -> None:
    threading.main_thread().join()
    time.sleep(_WAIT_S)
    names = ", ".join(thread.name for thread in threading.enumerate() if thread.is_alive() and not thread.daemon)
    _LOG.error("the program ends without its threads that did not end within %g s: %s", _WAIT_S, names)
    end_now(code)


def end_now(code: int) -> NoReturn:
    """End the process with exit status `code`, whatever its threads do."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
