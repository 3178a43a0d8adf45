"""The bounded queue of images for one engine: admission, and the choice of the next batch."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np


class QueueFullError(Exception):
    """No room for another request; the protocols answer it with 429.

    Args:
        retry_after_s: estimated seconds until the images in flight are done.

    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many images are in flight; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingResult:
    """One image's vector and its timings.

    Attributes:
        vector: float32 (D,).
        decode_s, queue_s, inference_s: seconds; the inference time is that of the whole batch.
        selection: weights of the patches, float32 (gh, gw); None if the graph has no such output.

    """

    vector: np.ndarray
    decode_s: float
    queue_s: float
    inference_s: float
    selection: np.ndarray | None = None


@dataclass(slots=True, eq=False)
class Item:
    """One image in flight.

    Attributes:
        pixels: uint8 (size, size, 3), set when decoded.
        decode_s: seconds of decoding.
        ready_at: time at which it joined the queue, by `time.monotonic`.
        future: its result; cancel it to drop the image.

    """

    pixels: np.ndarray | None = None
    decode_s: float = 0.0
    ready_at: float = 0.0
    future: Future[EmbeddingResult] = field(default_factory=Future)


class AdmissionQueue:
    """Images in flight: admitted, being decoded, queued or running. Thread-safe.

    A request is admitted while fewer than `capacity` images are in flight and their estimated wait is within the deadline.
    Its own number of images does not matter, so batch requests are not starved; the capacity is exceeded by at most one
    request.
    """

    def __init__(self, capacity: int, deadline_s: float) -> None:
        self._capacity = capacity
        self._deadline_s = deadline_s
        self._in_flight = 0
        self._queued: list[Item] = []
        self._image_s = 0.0
        self._most = 1
        self._closed = False
        self._changed = threading.Condition()

    @property
    def in_flight(self) -> int:
        """Number of images admitted and not done."""
        return self._in_flight

    @property
    def queued(self) -> int:
        """Number of images decoded and waiting."""
        return len(self._queued)

    @property
    def wait_s(self) -> float:
        """Estimated seconds until the images in flight are done, from recent batches."""
        return self._in_flight * self._image_s

    def check_room(self) -> None:
        """Raise `QueueFullError` if a request would not be admitted."""
        wait_s = self.wait_s
        if self._in_flight >= self._capacity or wait_s > self._deadline_s:
            raise QueueFullError(max(1, math.ceil(wait_s)))

    def admit(self, count: int) -> list[Item]:
        """Admit a request of `count` images; each leaves the queue when its future is done or cancelled.

        Raises:
            QueueFullError: there is no room.

        """
        with self._changed:
            self.check_room()
            self._in_flight += count
        items = [Item() for _ in range(count)]
        for item in items:
            item.future.add_done_callback(self._leave)
        return items

    def put(self, item: Item) -> None:
        """Queue a decoded image."""
        with self._changed:
            item.ready_at = time.monotonic()
            self._queued.append(item)
            if len(self._queued) == 1 or self._is_due():
                self._changed.notify_all()

    def take(self, most: int, choose: Callable[[int], int], *, patience_s: float, idle_s: float) -> list[Item] | None:
        """Return the next batch: empty after `idle_s` without an image, None once the queue is closed and empty.

        A batch closes when `most` images wait, when the first has waited `patience_s`, or when no other image is in flight.

        Args:
            most: largest number of images in a batch.
            choose: given the number of waiting images, returns how many to take.
            patience_s: longest wait of the first image, in seconds.
            idle_s: seconds without an image after which an empty batch is returned.

        """
        with self._changed:
            self._most = most
            self._changed.wait_for(lambda: self._queued or self._closed, idle_s)
            if self._queued:
                rest_s = self._queued[0].ready_at + patience_s - time.monotonic()
                self._changed.wait_for(self._is_due, max(0.0, rest_s))
            wanted = [item for item in self._queued if not item.future.cancelled()]
            if not wanted:
                self._queued = []
                return None if self._closed else []
            count = choose(min(len(wanted), most))
            self._queued = wanted[count:]
            return wanted[:count]

    def observe(self, seconds: float, images: int) -> None:
        """Update the estimated time per image from one batch."""
        pace = seconds / images
        self._image_s = pace if self._image_s == 0 else 0.8 * self._image_s + 0.2 * pace

    def close(self) -> None:
        """Make `take` return None once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_due(self) -> bool:
        return len(self._queued) >= min(self._most, self._in_flight) or self._closed

    def _leave(self, _: Future[EmbeddingResult]) -> None:
        with self._changed:
            self._in_flight -= 1
            if self._queued and self._is_due():  # do not wake the executor for every image
                self._changed.notify_all()
