"""SIGTERM ends a command within seconds, whatever its threads and libraries wait for."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

GRACE_S = 5.0
"""What a command has after SIGTERM to remove its temporary files."""


@contextlib.contextmanager
def ends_on_sigterm(code: int) -> Iterator[None]:
    """End the process with status `code` once SIGTERM was sent and `GRACE_S` have passed, if it has not ended before.

    Python calls its handler of a signal between two steps of the main thread, which may wait in a library for ever. The
    number of the signal is written to this pipe at once.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may ask for it
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
