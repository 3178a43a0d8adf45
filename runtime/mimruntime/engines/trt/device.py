"""The few calls the executor makes of a device, so that it can be tested without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np


class Device(Protocol):
    """Memory of a device, and one stream on which its work runs in order.

    Addresses are plain integers, sizes are bytes. Uploads, downloads and launches return at once; what they do has
    happened when `synchronize` returns. Every call raises `EngineError` where it fails.
    """

    stream: int
    """Handle of the stream, as the library that computes wants it."""

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the device, aligned to 256."""
        ...

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        ...

    def pin(self, size: int) -> np.ndarray:
        """Return host memory, uint8 (size,), that the device reads and writes directly."""
        ...

    def unpin(self, memory: np.ndarray) -> None:
        """Give back what `pin` gave; the array must not be used any more."""
        ...

    def upload(self, address: int, memory: np.ndarray) -> None:
        """Copy pinned `memory`, uint8 (n,), to the device."""
        ...

    def download(self, memory: np.ndarray, address: int) -> None:
        """Copy to pinned `memory`, uint8 (n,), from the device."""
        ...

    def capture(self, work: Callable[[], None]) -> Any:
        """Return a graph of what `work` would do on the stream, without doing it."""
        ...

    def launch(self, graph: Any) -> None:
        """Do what the graph captured."""
        ...

    def discard(self, graph: Any) -> None:
        """Give a graph back."""
        ...

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        ...

    def close(self) -> None:
        """Give the stream back; everything else must have been given back before."""
        ...
