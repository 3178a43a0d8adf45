"""What TensorRT says while it fails: the first error it logs is the cause, what follows is noise."""

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

# Logged as an error by every builder that is made; said by the parser around the error it then reports itself.
_NOISE = ("Thread context has not been set", "ModelImporter.cpp:")


class Messages:
    """The first error that was logged since the last `clear`."""

    def __init__(self) -> None:
        self.cause: str | None = None

    def clear(self) -> None:
        """Forget what was logged."""
        self.cause = None

    def add(self, text: str) -> None:
        """Take note of an error."""
        if self.cause is None and not text.startswith(_NOISE):
            self.cause = one_line(text)

    def failure(self, what: str, hint: str | None = None) -> EngineError:
        """Return the one exception for something that silently did not happen.

        Args:
            what: a sentence without its end ("cannot parse x.onnx").
            hint: said where nothing was logged.

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
    """Return the first line of a library's message, without the places in NVIDIA's sources."""
    text = str(error).strip().split("\n")[0].strip()
    return re.sub(r"\s*\(?\bIn \w+ at /\S+?:\d+\)?", "", text) or type(error).__name__


@contextlib.contextmanager
def contained_stderr() -> Iterator[None]:
    """Keep what native code writes to file descriptor 2 off the terminal; Python's own stderr still reaches it.

    Myelin, the compiler inside TensorRT, prints past the logger; what it says there is in the logged error too.
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
    """Collect garbage before the block, and none inside.

    The library calls its logger, which is Python, while it holds a lock; a builder of an earlier, failed build that is
    found to be garbage there waits for the same lock for ever.
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
    """Return a stream on `saved` where sys.stderr writes to descriptor 2; None where it is something else already."""
    try:
        if sys.stderr.fileno() != 2:
            return None
    except (OSError, ValueError):  # captured by a test or a notebook
        return None
    return open(saved, "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1, closefd=False)
