"""The processes that decode, and the calls that wait for them."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import queue
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mimruntime.decode import Source, describe
from mimruntime.decoder_processes.memory import SharedBuffers
from mimruntime.decoder_processes.worker import Settings, Task
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.errors import ImageError, ImageSizeError
from mimruntime.manifest import Preprocess
from mimruntime.preparation import prepare

AT_ONCE = 16
"""Most images in one message; a message costs both sides together a tenth of the time for a small photograph."""
_BYTES_AT_ONCE = 1 << 20
"""Encoded bytes in one message, unless one image alone has more; they are in memory several times."""
_FREE_BYTES = 8_000_000
"""Memory that a process takes without asking, which spares most photographs for the web one message each way."""
_SECONDS_TO_END = 10
_PROGRAM = "from mimruntime.decoder_processes.worker import main; main()"


class DecoderProcesses:
    """Decode paths and encoded bytes in processes of their own; thread-safe, one waiting thread for each process.

    The interpreter's lock of this process is not held while they decode, and a library that crashes ends only one of them:
    it is started again, and an image that ends it twice is an ImageError. Pillow images and arrays are resized in the
    calling thread.

    Args:
        count: number of processes, at least 1; each takes about 60 MB.
        spec: the manifest's `preprocess`.
        budget: memory for all images that are being decoded, in whichever process.
        scaled: see `mimruntime.preparation.prepare`.

    """

    def __init__(self, count: int, spec: Preprocess, budget: MemoryBudget, *, scaled: bool = False) -> None:
        self._spec, self._budget, self._scaled = spec, budget, scaled
        self._buffers = SharedBuffers()
        settings = Settings(self._buffers.descriptor, spec, scaled, min(_FREE_BYTES, budget.total // count))
        self._all = [_Decoder(settings, budget) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)

    def allocate(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array uint8 for a batch, in memory that the processes share.

        Raises:
            EngineError: there is not enough memory.

        """
        return self._buffers.allocate(shape)

    def prepare(self, sources: Sequence[Source], out: np.ndarray) -> list[ImageError | None]:
        """Decode n sources into `out`, uint8 (n, size, size, 3), rows of an array of `allocate`; return their errors.

        An error is one of `mimruntime.preparation.prepare`, or says that decoding ended the process twice.
        """
        return [error for part in _messages(sources) for error in self._decode(sources[part], out[part])]

    def close(self) -> None:
        """End the processes, when no thread is in `prepare` any more; further calls do nothing."""
        for decoder in self._all:
            decoder.disconnect()
        deadline = time.monotonic() + _SECONDS_TO_END
        for decoder in self._all:
            decoder.wait(deadline)
        self._all.clear()
        self._buffers.close()

    def _decode(self, sources: Sequence[Source], rows: np.ndarray) -> list[ImageError | None]:
        if not _is_sent(sources[0]):
            return [self._decode_here(sources[0], rows[0])]
        first, length = self._buffers.offset_of(rows), rows[0].nbytes
        tasks = [(_to_send(source), first + index * length) for index, source in enumerate(sources)]
        decoder = self._idle.get()
        try:
            errors = decoder.decode(tasks)
        finally:
            self._idle.put(decoder)
        return [
            error and _renamed(error, sent, source)
            for error, (sent, _), source in zip(errors, tasks, sources, strict=True)
        ]

    def _decode_here(self, source: Source, row: np.ndarray) -> ImageError | None:
        try:
            prepare(source, self._spec, self._budget, scaled=self._scaled, out=row)
        except ImageError as error:
            return error
        return None


def _is_sent(source: Source) -> bool:
    return isinstance(source, str | Path | bytes)


def _to_send(source: Source) -> Source:
    """Return what says the same in another folder; a Path as text, since it is ten times as slow to pickle."""
    return os.path.join(os.getcwd(), source) if isinstance(source, str | Path) else source  # noqa: PTH109, PTH118 - fast


def _renamed(error: ImageError, sent: Source, source: Source) -> ImageError:
    """Return the error with the name by which the image was given."""
    return type(error)(f"{describe(source)}{str(error).removeprefix(describe(sent))}")


def _messages(sources: Sequence[Source]) -> Iterator[slice]:
    """Yield the parts that are sent together; a source that is not sent is a part of its own."""
    first, length = 0, 0.0
    for index, source in enumerate(sources):
        more = len(source) if isinstance(source, bytes) else 0 if _is_sent(source) else math.inf
        if index > first and length + more > _BYTES_AT_ONCE:
            yield slice(first, index)
            first, length = index, 0.0
        length += more
    if sources:
        yield slice(first, len(sources))


class _Decoder:
    """One process, which is started again when it ends by itself."""

    opened: ClassVar[weakref.WeakSet[_Decoder]] = weakref.WeakSet()

    def __init__(self, settings: Settings, budget: MemoryBudget) -> None:
        self._settings, self._budget = settings, budget
        self._start()
        self.opened.add(self)

    def decode(self, tasks: list[Task]) -> list[ImageError | None]:
        """Have the process do the tasks; return their errors, and raise what is none of an image."""
        errors = self._try(tasks)
        if errors is None:  # one of them may have ended it, so the second time each is alone
            errors = [error for task in tasks for error in self._try([task]) or [_ended(task)]]
        for error in errors:
            if not isinstance(error, ImageError | None):
                raise error
        return errors

    def disconnect(self) -> None:
        """Close the connection, at which the process ends."""
        self._connection.close()

    def wait(self, deadline: float) -> None:
        """Wait until the process has ended; kill it at `deadline`, of `time.monotonic`."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _try(self, tasks: list[Task]) -> list[Any] | None:
        """Return what the process answers; if it ends instead, start it again and return None."""
        try:
            return self._ask(tasks)
        except (EOFError, OSError):
            self.disconnect()
            self.wait(time.monotonic() + _SECONDS_TO_END)
            self._start()
            return None

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        # Not by `multiprocessing`, which would import the user's script once more in every process.
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a constant
            # -P: the current folder may hold images and code from anywhere.
            [
                sys.executable,
                "-P",
                *(f"-W{option}" for option in sys.warnoptions),
                "-c",
                _PROGRAM,
                str(theirs.fileno()),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), self._settings.descriptor],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for this process, which then ends the others
        )
        theirs.close()
        self._connection.send(self._settings)

    def _ask(self, tasks: list[Task]) -> list[Any]:
        connection = self._connection
        connection.send(tasks)
        with contextlib.ExitStack() as reserved:
            while isinstance(answer := connection.recv(), int):
                reserved.close()  # else two threads might wait for each other's memory
                refused = None
                try:
                    reserved.enter_context(self._budget.reserve(answer))
                except ImageSizeError as error:  # more than the whole budget
                    refused = error
                connection.send(refused)
        return answer  # type: ignore[no-any-return]


def _disconnect_child() -> None:
    """In a forked child, close its copies of the connections, or the processes would outlive the parent."""
    for decoder in _Decoder.opened:
        decoder.disconnect()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disconnect_child)


def _ended(task: Task) -> ImageError:
    return ImageError(f"{describe(task[0])}: cannot be read (the process that decodes it ended, twice)")
