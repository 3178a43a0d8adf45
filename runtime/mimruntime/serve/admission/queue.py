"""The bounded queue of images before one engine: who may join it, and which images make the next batch."""

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
        retry_after_s: when the images in flight will be done, by the pace of late.

    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many images are in flight; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingResult:
    """One image's vector and where its time went.

    Attributes:
        vector: float32 (D,).
        decode_s, queue_s, inference_s: seconds; a batch's inference counts for each image in it.
        selection: weights of the patches, float32 (gh, gw); None where the graph does not give them.

    """

    vector: np.ndarray
    decode_s: float
    queue_s: float
    inference_s: float
    selection: np.ndarray | None = None


@dataclass(slots=True, eq=False)
class Item:
    """One image on its way.

    Attributes:
        pixels: uint8 (size, size, 3), once decoded.
        decode_s: seconds decoding took.
        ready_at: when it joined the queue, by `time.monotonic`.
        future: its result; who no longer wants it cancels it.

    """

    pixels: np.ndarray | None = None
    decode_s: float = 0.0
    ready_at: float = 0.0
    future: Future[EmbeddingResult] = field(default_factory=Future)


class AdmissionQueue:
    """Images in flight: admitted, being decoded, queued, running. Used from any thread.

    A request is let in while fewer than `capacity` images are in flight and the wait they mean is within the deadline,
    whether it brings one image or many: batch calls are neither favoured nor starved, and the excess is one request.
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
        """Images admitted and not done."""
        return self._in_flight

    @property
    def queued(self) -> int:
        """Images decoded and waiting."""
        return len(self._queued)

    @property
    def wait_s(self) -> float:
        """Seconds until the images in flight will be done, by the pace of late."""
        return self._in_flight * self._image_s

    def check_room(self) -> None:
        """Raise `QueueFullError` where a request would not be let in."""
        wait_s = self.wait_s
        if self._in_flight >= self._capacity or wait_s > self._deadline_s:
            raise QueueFullError(max(1, math.ceil(wait_s)))

    def admit(self, count: int) -> list[Item]:
        """Let a request of `count` images in; each leaves when its future is done or cancelled.

        Raises:
            QueueFullError: no room.

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

        A batch closes when `most` wait, when the first has waited `patience_s`, or when nobody else is on the way.

        Args:
            most: images of a batch at most.
            choose: how many to take of so many that wait.
            patience_s: seconds.
            idle_s: seconds.

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
        """Learn the pace from one batch."""
        pace = seconds / images
        self._image_s = pace if self._image_s == 0 else 0.8 * self._image_s + 0.2 * pace

    def close(self) -> None:
        """Let `take` return None once nobody waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_due(self) -> bool:
        return len(self._queued) >= min(self._most, self._in_flight) or self._closed

    def _leave(self, _: Future[EmbeddingResult]) -> None:
        with self._changed:
            self._in_flight -= 1
            if self._queued and self._is_due():  # whom this does not concern is not woken, image by image
                self._changed.notify_all()
