"""What one model has done since it was opened, as Triton counts it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mimruntime.serve.admission.queue import EmbeddingResult


@dataclass(slots=True)
class Duration:
    """How often something was done, and nanoseconds of it all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Count it once more."""
        self.count += 1
        self.ns += int(seconds * 1e9)


@dataclass(slots=True)
class Statistics:
    """Of requests, written by the event loop, and of runs, written by the executor.

    Attributes:
        success, fail: requests; of a client that hung up neither.
        decode, queue, inference: of the requests that succeeded, the slowest image of each.
        images: embedded for them.
        runs: of the engine, by images of a run.
        last_ms: milliseconds since 1970, of the last request.

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
        """Count a request that was answered with these vectors."""
        self.success.add(seconds)
        self.images += len(results)
        self.last_ms = time.time_ns() // 1_000_000
        self.decode.add(max((each.decode_s for each in results), default=0.0))
        self.queue.add(max((each.queue_s for each in results), default=0.0))
        self.inference.add(max((each.inference_s for each in results), default=0.0))

    def failed(self, seconds: float) -> None:
        """Count a request that was not."""
        self.fail.add(seconds)

    def ran(self, images: int, seconds: float) -> None:
        """Count a run of the engine."""
        self.runs.setdefault(images, Duration()).add(seconds)

    def describe(self, model: str) -> dict[str, Any]:
        """Return Triton's `ModelStatistics`; what is not counted here is 0."""
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
