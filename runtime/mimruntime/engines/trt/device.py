"""The protocol of a device; the executor is tested without a GPU by implementing it on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np


class Device(Protocol):
    """Memory of a device, and one stream that runs work in order.

    Addresses are integers, sizes are bytes. Uploads, downloads and launches return at once and are complete when
    `synchronize` returns. Each method raises `EngineError` on failure.
    """

    stream: int
    """Handle of the stream for the inference library."""

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the device, aligned to 256."""
        ...

    def free(self, address: int) -> None:
        """Free memory from `allocate`."""
        ...

    def pin(self, size: int) -> np.ndarray:
        """Return page-locked host memory, uint8 (size,)."""
        ...

    def unpin(self, memory: np.ndarray) -> None:
        """Free memory from `pin`; do not use the array afterwards."""
        ...

    def upload(self, address: int, memory: np.ndarray) -> None:
        """Copy pinned `memory`, uint8 (n,), to the device."""
        ...

    def download(self, memory: np.ndarray, address: int) -> None:
        """Copy to pinned `memory`, uint8 (n,), from the device."""
        ...

    def capture(self, work: Callable[[], None]) -> Any:
        """Return a graph of the work that `work` enqueues on the stream, without running it."""
        ...

    def launch(self, graph: Any) -> None:
        """Run a captured graph."""
        ...

    def discard(self, graph: Any) -> None:
        """Free a graph."""
        ...

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        ...

    def close(self) -> None:
        """Free the stream; free everything else before."""
        ...
