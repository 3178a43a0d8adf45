"""Collect TensorRT's log: the first error is the cause of a failure."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from mimruntime.errors import EngineError

# Errors without meaning: every builder logs the first, and the parser logs the second around the real error.
_NOISE = ("Thread context has not been set", "ModelImporter.cpp:")


class Messages:
    """The first error logged since the last `clear`."""

    def __init__(self) -> None:
        self.cause: str | None = None

    def clear(self) -> None:
        """Forget the logged error."""
        self.cause = None

    def add(self, text: str) -> None:
        """Keep an error if it is the first and not noise."""
        if self.cause is None and not text.startswith(_NOISE):
            self.cause = one_line(text)

    def failure(self, what: str, hint: str | None = None) -> EngineError:
        """Return the exception for a call that failed without raising one.

        Args:
            what: start of the message ("cannot parse x.onnx").
            hint: cause to report if no error was logged.

        """
        return EngineError(f"{what}: {self.cause or hint or 'TensorRT gave no reason'}")


def make_logger(trt: Any, messages: Messages) -> Any:
    """Return a logger of the library `trt` that keeps errors in `messages` and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 demands this form

        def log(self, severity: Any, text: str) -> None:
            if severity in {trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR}:
                messages.add(text)

    return Logger()


def one_line(error: Exception | str) -> str:
    """Return the first line of a library's message without source locations."""
    text = str(error).strip().split("\n")[0].strip()
    return re.sub(r"\s*\(?\bIn \w+ at /\S+?:\d+\)?", "", text) or type(error).__name__


@contextlib.contextmanager
def contained_stderr() -> Iterator[None]:
    """Hide output of native code on file descriptor 2; Python's own stderr still works.

    TensorRT's compiler Myelin prints to stderr directly; the logged error has the same text.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    own = _own_stderr(saved)
    previous = sys.stderr
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 2)
            sys.stderr = own or previous
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        sys.stderr = previous
        os.close(saved)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Collect garbage before the block, and disable collection inside it.

    The library calls its Python logger while it holds a lock. If the garbage collector then destroys the builder of an
    earlier failed build, that waits for the same lock and the process deadlocks.
    """
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _own_stderr(saved: int) -> io.TextIOWrapper | None:
    """Return a stream on `saved` if sys.stderr writes to descriptor 2, else None."""
    try:
        if sys.stderr.fileno() != 2:
            return None
    except (OSError, ValueError):  # captured by a test or a notebook
        return None
    return open(saved, "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1, closefd=False)
