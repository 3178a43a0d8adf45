"""The shards of a job on Ray Data: a pool of actors that hold one embedder each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimruntime.collection.worker import Done, ShardWorker
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


def connect(address: str) -> dict[str, float]:
    """Join the cluster at `address` and return its resources by name (CPU, GPU).

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
        raise EngineError(
            f"no Ray cluster at {address} ({str(error).splitlines()[0]}); is it running, and are RAY_AUTH_MODE and"
            " RAY_AUTH_TOKEN its own? --ray auto starts one here"
        ) from error
    resources: dict[str, float] = ray.cluster_resources()
    return resources


def pool(resources: Mapping[str, float], *, actors: int | None, threads: int | None, gpu: bool) -> Pool:
    """Divide a cluster so that its CPUs are used once: actors times threads is at most what it has.

    Raises:
        OptionError: what was asked for is more than the cluster has, and would wait for ever.

    """
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if gpu and gpus < (actors or 1):
        raise OptionError(f"{actors or 1} workers with a GPU each were asked for, the cluster has {gpus} GPUs")
    if actors is None:
        actors = gpus if gpu else max(1, cpus // (threads or min(_MOST_THREADS, max(1, cpus // 2))))
    if threads is None:
        threads = max(1, cpus // actors)
        if gpu:
            threads = min(threads, 2 * _MOST_THREADS)  # they only decode
    if actors * threads > cpus:
        raise OptionError(
            f"{actors} workers of {threads} threads need {actors * threads} CPUs, the cluster has {cpus};"
            " lower --workers or --threads"
        )
    return Pool(actors, threads, int(gpu))


def run(worker: ShardWorker, shards: Sequence[int], using: Pool) -> Iterator[Done]:
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
        yield Done(int(row["images"]), int(row["errors"]), row["first_error"])


class ShardActor:
    """A `ShardWorker` in the shape of Ray Data: a batch of one index in, what became of it out."""

    def __init__(self, worker: ShardWorker) -> None:
        self._worker = worker

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Embed and write one shard; an error on purpose travels as text, or Ray would print pages of trace."""
        done, failure = Done(0), ""
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
