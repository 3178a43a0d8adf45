"""The shards of a job, one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mimruntime.collection.worker import ShardResult, ShardWorker


def run(worker: ShardWorker, shards: Sequence[int]) -> Iterator[ShardResult]:
    """Yield each shard when it is written; raises what the worker raises."""
    try:
        yield from worker.each(shards)
    finally:
        worker.embedder.close()
