"""The shards of a job on Ray Data: a pool of actors that hold one embedder each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimruntime.collection.worker import ShardResult, ShardWorker
from mimruntime.errors import EngineError, MimError, MissingExtraError, OptionError

_MOST_THREADS = 4
"""CPUs of an actor where nothing else is said: more embedders use a CPU better, fewer need less memory."""
_MOST_BLOCKS = 4096
"""Tasks that Ray keeps track of; beyond that, one task is several shards."""


@dataclass(frozen=True, slots=True)
class Pool:
    """How many actors, and what each may use.

    Attributes:
        actors: how many.
        threads: CPUs of each.
        gpus: GPUs of each, 0 or 1.

    """

    actors: int
    threads: int
    gpus: int = 0


def connect(address: str) -> list[dict[str, float]]:
    """Join the cluster at `address` and return the resources of each of its nodes by name (CPU, GPU).

    Args:
        address: "auto" is the cluster that RAY_ADDRESS names or that runs on this machine, else one started here for as
            long as this process lives; anything else as `ray.init` takes it.

    Raises:
        MissingExtraError: Ray is not installed.
        EngineError: no cluster there.

    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # the runtime opens no connection of its own
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
    """Divide a cluster so that its CPUs are used once; an actor has all its threads on one node.

    Raises:
        OptionError: what was asked for is more than the cluster has, and would wait for ever.

    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if gpu and sum(gpus) < (actors or 1):
        raise OptionError(f"{actors or 1} workers with a GPU each were asked for, the cluster has {sum(gpus)} GPUs")

    def room(each: int) -> int:
        """Return how many actors of so many threads fit."""
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
    """Yield each shard when it is written, in any order; a lost actor's shard is done again by another.

    Raises:
        MimError: what a worker met; finished shards stay.

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
    """A `ShardWorker` in the shape of Ray Data: a batch of one index in, what became of it out."""

    def __init__(self, worker: ShardWorker) -> None:
        self._worker = worker

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Embed and write one shard; an error on purpose travels as text, or Ray would print pages of trace."""
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
