"""The processes that decode, and the calls that wait for them."""

from __future__ import annotations

import multiprocessing
import os
import queue
import subprocess
import sys
from pathlib import Path

import numpy as np

from mimruntime.decode import Source, describe
from mimruntime.decoder_processes.memory import SharedBuffers
from mimruntime.decoder_processes.worker import Settings, Task
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.errors import ImageError, ImageSizeError
from mimruntime.manifest import Preprocess
from mimruntime.preparation import prepare

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
        self._all = [_Decoder(Settings(self._buffers.descriptor, spec, scaled), budget) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)

    def allocate(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array uint8 for a batch, in memory that the processes share.

        Raises:
            EngineError: there is not enough memory.

        """
        return self._buffers.allocate(shape)

    def prepare(self, source: Source, *, out: np.ndarray) -> np.ndarray:
        """Decode `source` into `out`, uint8 (size, size, 3), a row of an array of `allocate`; return `out`.

        Raises:
            ImageError: as `mimruntime.preparation.prepare`, or decoding ended the process twice.

        """
        if not isinstance(source, str | Path | bytes):
            return prepare(source, self._spec, self._budget, scaled=self._scaled, out=out)
        decoder = self._idle.get()
        try:
            decoder.decode((source, self._buffers.offset_of(out)))
        finally:
            self._idle.put(decoder)
        return out

    def close(self) -> None:
        """End the processes, when no thread is in `prepare` any more; further calls do nothing."""
        for decoder in self._all:
            decoder.end()
        self._all.clear()
        self._buffers.close()


class _Decoder:
    """One process, which is started again when it ends by itself."""

    def __init__(self, settings: Settings, budget: MemoryBudget) -> None:
        self._settings, self._budget = settings, budget
        self._start()

    def decode(self, task: Task) -> None:
        """Have the process do the task; raise the exception that it answers."""
        for _ in range(2):
            try:
                answer = self._ask(task)
            except (EOFError, OSError):
                self.end()
                self._start()
                continue
            if answer is not None:
                raise answer
            return
        raise ImageError(f"{describe(task[0])}: cannot be read (the process that decodes it ended, twice)")

    def end(self) -> None:
        """Close the connection, at which the process ends; kill it if it does not."""
        self._connection.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        # Not by `multiprocessing`, which would import the user's script once more in every process.
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a constant
            [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), self._settings.descriptor],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for this process, which then ends the others
        )
        theirs.close()
        self._connection.send(self._settings)

    def _ask(self, task: Task) -> Exception | None:
        connection = self._connection
        connection.send(task)
        answer = connection.recv()
        if not isinstance(answer, int):
            return answer  # type: ignore[no-any-return]
        try:
            with self._budget.reserve(answer):
                connection.send(None)
                answer = connection.recv()
        except ImageSizeError as error:  # more than the whole budget
            connection.send(error)
            answer = connection.recv()
        return answer  # type: ignore[no-any-return]
