"""Bytes of all requests that are held at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mimruntime.serve.problems import Problem


class Buffer:
    """Counts what is held; used from the event loop.

    Args:
        most: bytes.

    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    def take(self, count: int) -> None:
        """Count `count` bytes, whether there is room or not.

        Raises:
            Problem: 429, there is none.

        """
        self._held += count
        if self._held > self._most:
            raise Problem(429, "memory_full", "too many bytes are in flight", retry_after_s=1)

    def give(self, count: int) -> None:
        """Count `count` bytes no longer."""
        self._held -= count

    @contextlib.contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Count `count` bytes as long as the block runs; see `take`."""
        try:
            self.take(count)
            yield
        finally:
            self.give(count)
