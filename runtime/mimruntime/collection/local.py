"""Run a job's shards one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mimruntime.collection.worker import ShardResult, ShardWorker


def run(worker: ShardWorker, shards: Sequence[int]) -> Iterator[ShardResult]:
    """Yield the result of each shard when it is written; raises as the worker does."""
    try:
        yield from worker.each(shards)
    finally:
        worker.embedder.close()
