"""End a command within seconds after SIGTERM, even if a library blocks."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

GRACE_S = 5.0
"""Seconds that a command has after SIGTERM to remove its temporary files."""


@contextlib.contextmanager
def ends_on_sigterm(code: int) -> Iterator[None]:
    """End the process with status `code` `GRACE_S` seconds after SIGTERM, unless it ends earlier.

    Python runs signal handlers only between two steps of the main thread, which may block in a library. But it writes the
    signal's number to the wakeup pipe at once, and a thread reads this pipe.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set the wakeup pipe
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, code), name="mimexport-sigterm", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _watch(reader: int, code: int) -> None:
    while signals := os.read(reader, 64):
        if signal.SIGTERM in signals:
            time.sleep(GRACE_S)
            os._exit(code)
    os.close(reader)
