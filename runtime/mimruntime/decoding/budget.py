"""A memory budget for decoders: a request that exceeds the free part waits."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from mimruntime.errors import ImageSizeError, OptionError

DEFAULT_MB = 1024
"""Enough for a progressive JPEG of 89 megapixels or a WebP of 50; or for twenty photographs of 12 megapixels at once."""


class MemoryBudget:
    """A budget of `megabytes` (10^6 bytes) for all images that are being decoded; first come, first served.

    Args:
        megabytes: at least 1.

    """

    def __init__(self, megabytes: int = DEFAULT_MB) -> None:
        if megabytes < 1:
            raise OptionError(f"the memory for decoding must be at least 1 MB, got {megabytes}")
        self._total = self._free = megabytes * 1_000_000
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def total(self) -> int:
        """The whole budget, bytes."""
        return self._total

    def check(self, amount: int) -> None:
        """Refuse what `reserve` would refuse.

        Raises:
            ImageSizeError: the amount exceeds the whole budget.

        """
        if amount > self._total:
            raise ImageSizeError(
                f"would take about {amount / 1e6:,.0f} MB to decode; at most {self._total // 1_000_000:,} MB are given to"
                " decoding (max_decode_mb)"
            )

    @contextlib.contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Reserve `amount` bytes while the block runs; wait in order of arrival.

        Raises:
            ImageSizeError: the amount exceeds the whole budget.

        """
        self.check(amount)
        self._take(amount)
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()

    def _take(self, amount: int) -> None:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and amount <= self._free)
                self._free -= amount
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
