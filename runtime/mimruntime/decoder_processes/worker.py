"""The program of a decoding process: read a source, write its pixels to shared memory, answer; end with the connection."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from mimruntime.decode import Source
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.manifest import Preprocess
from mimruntime.preparation import prepare

Task = tuple[Source, int]
"""One image: where it comes from, and the offset in bytes of its pixels in the shared memory."""

Answer = int | list[Exception | None]
"""What came of each task, None or an exception; or, before, the bytes of memory that one of them waits for.

The latter is to be answered by None or an exception. It also says that the tasks before need their memory no more.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all images.

    Attributes:
        descriptor: of the shared memory.
        spec, scaled: arguments of `prepare`.
        free_bytes: memory for decoding that the process takes without asking.

    """

    descriptor: int
    spec: Preprocess
    scaled: bool
    free_bytes: int


class _RemoteBudget(MemoryBudget):
    """The memory budget of the waiting process, which takes the memory back at the next message."""

    def __init__(self, waiting: Connection, free_bytes: int) -> None:
        super().__init__()
        self._connection, self._free_bytes = waiting, free_bytes

    @contextlib.contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """See base class."""
        if amount > self._free_bytes:
            self._connection.send(amount)
            refused = self._connection.recv()
            if refused is not None:
                raise refused
        yield


class _Pixels:
    """The shared memory, mapped again when it has grown."""

    def __init__(self, settings: Settings) -> None:
        self._descriptor, self._shape = settings.descriptor, (settings.spec.size, settings.spec.size, 3)
        self._mapped: bytes | mmap.mmap = b""

    def at(self, offset: int) -> np.ndarray:
        """Return the pixels of one image, uint8 (size, size, 3)."""
        count = math.prod(self._shape)
        if offset + count > len(self._mapped):
            self._mapped = mmap.mmap(self._descriptor, 0)
        return np.frombuffer(self._mapped, np.uint8, count, offset).reshape(self._shape)


def main() -> None:
    """Do all tasks that come in by the descriptor on the command line, until the waiting process closes or ends."""
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged metadata, as in the command line
    waiting = Connection(int(sys.argv[1]))
    settings: Settings = waiting.recv()
    budget, pixels = _RemoteBudget(waiting, settings.free_bytes), _Pixels(settings)

    def do(source: Source, offset: int) -> Exception | None:
        try:
            prepare(source, settings.spec, budget, scaled=settings.scaled, out=pixels.at(offset))
        except Exception as error:  # whatever it is, it belongs to the process that waits
            return error
        return None

    with contextlib.suppress(EOFError, OSError):
        while True:
            tasks: list[Task] = waiting.recv()
            waiting.send([do(*task) for task in tasks])
