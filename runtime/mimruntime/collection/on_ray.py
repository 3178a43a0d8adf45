"""Run a job's shards on Ray Data: a pool of actors with one embedder each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimruntime.collection.worker import ShardResult, ShardWorker
from mimruntime.errors import EngineError, MimError, MissingExtraError, OptionError

_MOST_THREADS = 4
"""Default CPUs of an actor: more embedders use the CPUs better, fewer need less memory."""
_MOST_BLOCKS = 4096
"""Largest number of Ray tasks; with more shards, a task has several of them."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The number of actors and the resources of each.

    Attributes:
        actors: number of actors.
        threads: CPUs per actor.
        gpus: GPUs per actor, 0 or 1.

    """

    actors: int
    threads: int
    gpus: int = 0


def connect(address: str) -> list[dict[str, float]]:
    """Connect to the cluster at `address`; return the resources of each node by name (CPU, GPU).

    Args:
        address: "auto" takes the cluster in RAY_ADDRESS or the one on this machine, or else starts one for the life of this
            process; other values are passed to `ray.init`.

    Raises:
        MissingExtraError: Ray is not installed.
        EngineError: there is no cluster.

    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # this package opens no connections that were not requested
    try:
        import ray  # noqa: PLC0415 - optional
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("--ray", extra="ray") from error
    try:
        if not ray.is_initialized():
            ray.init(None if address == "auto" else address, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise EngineError(
            f"no Ray cluster at {address} ({reason}); is it running, and are RAY_AUTH_MODE and"
            " RAY_AUTH_TOKEN its own? --ray auto starts one here"
        ) from error
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def pool(nodes: Sequence[Mapping[str, float]], *, actors: int | None, threads: int | None, gpu: bool) -> Pool:
    """Divide the CPUs of a cluster between actors; an actor has all its threads on one node.

    Raises:
        OptionError: the request exceeds the cluster, so it would wait forever.

    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if gpu and sum(gpus) < (actors or 1):
        raise OptionError(f"{actors or 1} workers with a GPU each were asked for, the cluster has {sum(gpus)} GPUs")

    def room(each: int) -> int:
        """Return how many actors of `each` threads fit."""
        return sum(min(cpu // each, has) if gpu else cpu // each for cpu, has in zip(cpus, gpus, strict=True))

    choice = range(1, max(cpus, default=0) + 1)
    if threads is None and actors is None and not gpu:
        few = choice[: min(_MOST_THREADS, max(1, sum(cpus) // 2))]
        threads = max(few, key=lambda each: (each * room(each), each), default=1)
    elif threads is None:
        choice = choice[: 2 * _MOST_THREADS] if gpu else choice  # beside a GPU they only decode
        threads = max((each for each in choice if room(each) >= (actors or room(1))), default=1)
    actors = actors or max(1, room(threads))
    if room(threads) < actors:
        raise OptionError(
            f"{actors} workers of {threads} threads do not fit: the cluster has {sum(cpus)} CPUs, its largest node"
            f" {max(cpus, default=0)}; lower --workers or --threads"
        )
    return Pool(actors, threads, int(gpu))


def run(worker: ShardWorker, shards: Sequence[int], using: Pool) -> Iterator[ShardResult]:
    """Yield the result of each shard when it is written, in any order; another actor repeats a lost actor's shard.

    Raises:
        MimError: a worker failed; finished shards stay.

    """
    import ray  # noqa: PLC0415 - optional
    import ray.data  # noqa: PLC0415

    written = ray.data.from_items(list(shards), override_num_blocks=min(len(shards), _MOST_BLOCKS)).map_batches(
        ShardActor,
        fn_constructor_args=[worker],
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=using.actors),
        num_cpus=using.threads,
        num_gpus=using.gpus or None,
    )
    for row in written.iter_rows():
        if row["failure"]:
            raise MimError(row["failure"])
        yield ShardResult(int(row["images"]), int(row["errors"]), row["first_error"])


class ShardActor:
    """A `ShardWorker` for Ray Data: takes a batch of one index and returns its result."""

    def __init__(self, worker: ShardWorker) -> None:
        self._worker = worker

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Embed and write one shard; return a MimError as text, since Ray would print a long traceback."""
        done, failure = ShardResult(0), ""
        try:
            done = self._worker(int(batch["item"][0]))
        except MimError as error:
            failure = str(error)
        return {
            "images": [done.images],
            "errors": [done.errors],
            "first_error": [done.first_error],
            "failure": [failure],
        }
