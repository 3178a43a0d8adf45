"""Batch buffers in anonymous memory that other processes can map."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import weakref
from collections import deque

import numpy as np

from mimruntime.errors import EngineError


class SharedBuffers:
    """Arrays in one anonymous file, which grows as they are asked for; thread-safe.

    A process that inherits `descriptor` maps the file and finds an array at its offset.
    """

    def __init__(self) -> None:
        # A memfd is not bounded by the size of /dev/shm, which is 64 MB in a container.
        self.descriptor = os.memfd_create("mimruntime") if hasattr(os, "memfd_create") else _unnamed_file()
        self._length = 0
        self._free: dict[int, list[tuple[int, mmap.mmap]]] = {}
        self._begin: dict[int, tuple[int, int]] = {}
        self._returned: deque[tuple[int, int, mmap.mmap]] = deque()
        self._lock = threading.Lock()

    def allocate(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array uint8 of this shape; its part of the file is used again when the array and its views are gone.

        Raises:
            EngineError: there is not enough memory.

        """
        count = int(np.prod(shape))
        size = -(-count // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        with self._lock:
            self._take_back()
            free = self._free.setdefault(size, [])
            offset, mapped = free.pop() if free else self._grow(size)
            whole = np.frombuffer(mapped, np.uint8, count)
            self._begin[offset] = (whole.__array_interface__["data"][0], count)
        # Every view keeps `whole`. The garbage collector may call this within the lock, so it takes none.
        weakref.finalize(whole, self._returned.append, (size, offset, mapped))
        return whole.reshape(shape)

    def offset_of(self, row: np.ndarray) -> int:
        """Return where a part of such an array begins in the file, in bytes."""
        address: int = row.__array_interface__["data"][0]
        with self._lock:
            for offset, (begin, count) in self._begin.items():
                if begin <= address < begin + count:
                    return offset + address - begin
        raise ValueError("not an array of this memory")

    def close(self) -> None:
        """Close the file; memory is freed with the last array. Further calls do nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _grow(self, size: int) -> tuple[int, mmap.mmap]:
        offset = self._length
        try:
            # Reserve it: a process that writes to memory that does not exist is killed.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.descriptor, offset, size)
            else:
                os.ftruncate(self.descriptor, offset + size)
            mapped = mmap.mmap(self.descriptor, size, offset=offset)
        except OSError as error:
            raise EngineError(f"no memory for a batch of {size / 1e6:,.0f} MB: {error.strerror}") from error
        self._length += size
        return offset, mapped

    def _take_back(self) -> None:
        """Make the parts of arrays that are gone free again."""
        while self._returned:
            size, offset, mapped = self._returned.popleft()
            del self._begin[offset]
            self._free[size].append((offset, mapped))


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
