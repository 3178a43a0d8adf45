"""Measure how the time of embedding is divided."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class Times:
    """Seconds since an Embedder was opened, or since `clear`, added up from any number of threads.

    Attributes:
        images: number of images, including those without a vector.
        reading: time spent waiting for sources: lists, rows of Parquet, remote objects.
        decoding: sum over all threads that read files, decode and resize.
        engine: time spent in runs of the engine.
        on_gpu: number of images that a GPU decoded.
        on_cpu: number of images that the CPU decoded although a GPU was to decode.

    """

    images: int = 0
    reading: float = 0.0
    decoding: float = 0.0
    engine: float = 0.0
    on_gpu: int = 0
    on_cpu: int = 0
    _adding: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(
        self,
        *,
        images: int = 0,
        reading: float = 0.0,
        decoding: float = 0.0,
        engine: float = 0.0,
        on_gpu: int = 0,
        on_cpu: int = 0,
    ) -> None:
        """Add the times of one batch."""
        with self._adding:
            self.images += images
            self.reading += reading
            self.decoding += decoding
            self.engine += engine
            self.on_gpu += on_gpu
            self.on_cpu += on_cpu

    def clear(self) -> None:
        """Begin anew."""
        with self._adding:
            self.images, self.reading, self.decoding, self.engine, self.on_gpu, self.on_cpu = 0, 0.0, 0.0, 0.0, 0, 0

    def describe(self, seconds: float) -> str:
        """Return one line for `seconds` of embedding; how much of them the engine ran is its share of its own rate."""
        waiting = max(0.0, seconds - self.engine)
        by = f"; decoded by the GPU {self.on_gpu}, by the CPU {self.on_cpu}" if self.on_gpu or self.on_cpu else ""
        return (
            f"engine {self.engine:.1f} s ({100 * self.engine / seconds:.0f} % of the time), waiting {waiting:.1f} s;"
            f" reading {self.reading:.1f} s, decoding {self.decoding:.1f} s of all threads{by}"
        )
