"""A limit on the bytes of all requests in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mimruntime.serve.problems import Problem


class Buffer:
    """Count the bytes in memory; used from the event loop.

    Args:
        most: the limit in bytes.

    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    def take(self, count: int) -> None:
        """Add `count` bytes, even if they exceed the limit.

        Raises:
            Problem: 429, the limit is exceeded.

        """
        self._held += count
        if self._held > self._most:
            raise Problem(429, "memory_full", "too many bytes are in flight", retry_after_s=1)

    def give(self, count: int) -> None:
        """Subtract `count` bytes."""
        self._held -= count

    @contextlib.contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Add `count` bytes while the block runs; see `take`."""
        try:
            self.take(count)
            yield
        finally:
            self.give(count)
