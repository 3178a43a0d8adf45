"""Counts and times of one model since it was opened, in Triton's form."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mimruntime.serve.admission.queue import EmbeddingResult


@dataclass(slots=True)
class Duration:
    """A count and a total of nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Add one of this duration."""
        self.count += 1
        self.ns += int(seconds * 1e9)


@dataclass(slots=True)
class Statistics:
    """Statistics of requests, written by the event loop, and of runs, written by the executor.

    Attributes:
        success, fail: requests; a request whose client disconnected is in neither.
        decode, queue, inference: for each successful request, the time of its slowest image.
        images: number of images embedded for them.
        runs: runs of the engine by batch size.
        last_ms: time of the last request, in milliseconds since 1970.

    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    decode: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    inference: Duration = field(default_factory=Duration)
    images: int = 0
    runs: dict[int, Duration] = field(default_factory=dict)
    last_ms: int = 0

    def succeeded(self, seconds: float, results: Sequence[EmbeddingResult]) -> None:
        """Count a successful request with its results."""
        self.success.add(seconds)
        self.images += len(results)
        self.last_ms = time.time_ns() // 1_000_000
        self.decode.add(max((each.decode_s for each in results), default=0.0))
        self.queue.add(max((each.queue_s for each in results), default=0.0))
        self.inference.add(max((each.inference_s for each in results), default=0.0))

    def failed(self, seconds: float) -> None:
        """Count a failed request."""
        self.fail.add(seconds)

    def ran(self, images: int, seconds: float) -> None:
        """Count a run of the engine."""
        self.runs.setdefault(images, Duration()).add(seconds)

    def describe(self, model: str) -> dict[str, Any]:
        """Return Triton's `ModelStatistics`; fields that are not counted are 0."""
        none = Duration()
        of_requests = {
            "success": self.success,
            "fail": self.fail,
            "queue": self.queue,
            "compute_input": self.decode,
            "compute_infer": self.inference,
            "compute_output": none,
            "cache_hit": none,
            "cache_miss": none,
        }
        runs = sorted(self.runs.copy().items())
        return {
            "name": model,
            "version": "1",
            "last_inference": self.last_ms,
            "inference_count": self.images,
            "execution_count": sum(run.count for _, run in runs),
            "inference_stats": {name: _numbers(each) for name, each in of_requests.items()},
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": _numbers(none),
                    "compute_infer": _numbers(run),
                    "compute_output": _numbers(none),
                }
                for size, run in runs
            ],
        }


def _numbers(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
