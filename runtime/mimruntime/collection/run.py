"""Run a job: list the inputs, plan, and embed the missing shards, locally or on Ray."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimruntime.artifact import Artifact
from mimruntime.batch import BatchEmbedder
from mimruntime.collection import local, on_ray
from mimruntime.collection.access import LOCAL_ONLY, Access
from mimruntime.collection.inputs import Columns
from mimruntime.collection.job import Job, plan
from mimruntime.collection.record import Record
from mimruntime.collection.store import open_folder
from mimruntime.collection.urls import arrow
from mimruntime.collection.worker import ShardResult, ShardWorker
from mimruntime.engines import engine_module
from mimruntime.engines.auto import choose_engine
from mimruntime.engines.compiled import choose_compiled
from mimruntime.errors import ImageError, OptionError
from mimruntime.precisions import warn_of_mixing
from mimruntime.storage import Store
from mimruntime.times import Times
from mimruntime.vectors import PRECISION

SHARD_SIZE = 1000
"""Default number of images in a shard."""

Progress = Callable[[Iterable[ShardResult], int], Iterator[ShardResult]]
"""Shows progress and passes the shards on; the number is that of the shards to come."""


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one run of a job.

    Attributes:
        record: the record of the job.
        found: number of shards that existed already.
        images: rows that this run wrote.
        errors: number of these rows without a vector.
        first_error: one of their errors, or "".
        seconds: duration of all shards, with the start of the workers.
        where: the engine that ran it.
        spent: the time by stage; "" on Ray, whose workers do not report it.

    """

    record: Record
    found: int
    images: int
    errors: int
    first_error: str
    seconds: float
    where: str
    spent: str = ""


def embed_collection(
    inputs: Iterable[str],
    out: str,
    columns: Columns,
    *,
    path: Path,
    shard_size: int = SHARD_SIZE,
    access: Access = LOCAL_ONLY,
    ray: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    strict: bool = False,
    expect_space: str | None = None,
    store: Store = "fp32",
    dims: int | None = None,
    progress: Progress = lambda written, total: iter(written),
    **settings: Any,
) -> Report:
    """Embed `inputs` into shards in the folder `out`, and skip the shards that exist.

    Args:
        inputs: as in `collection.inputs.find_entries`.
        out: folder or URL.
        columns: columns of Parquet inputs.
        path: path of the artifact, as every worker sees it.
        shard_size: number of images in a shard.
        access: URLs that lists and Parquet cells may name, and the largest object.
        ray: address of a cluster, or "auto"; None runs locally. This process chooses the engine for "auto".
        workers: number of embedders on Ray.
        threads: CPUs per embedder.
        strict: stop at the first image that cannot be read.
        expect_space: refuse an artifact of another embedding space.
        store: one of `mimruntime.storage.STORES`.
        dims: number of dimensions to keep; None keeps all.
        progress: shows the progress of shards; Ray shows its own.
        settings: settings of `Embedder.open`: engine, provider, batch_size, public_key, check_reference.

    Raises:
        ImageError: no image of the whole job could be read; the shards contain the errors.
        MimError: any other failure; finished shards stay, and the same call resumes after them.

    """
    if workers is not None and ray is None:
        raise OptionError("--workers is for --ray; here one embedder uses every CPU, or --threads of them")
    artifact = Artifact.open(path, expect_space=expect_space, public_key=settings.get("public_key"))
    job = plan(inputs, out, artifact, columns=columns, shard_size=shard_size, access=access, store=store, dims=dims)
    pending = job.pending()
    folder, started = open_folder(job.out), time.perf_counter()
    with folder.hold() if pending else contextlib.nullcontext():
        if not pending:
            report = _write(job, pending, (), started, "nothing left to do")
        elif ray is None:
            written, where, times = _run_here(job, pending, path, threads=threads, strict=strict, **settings)
            report = _write(job, pending, progress(written, len(pending)), started, where, times)
        else:
            written, where = _run_on_ray(job, pending, artifact, ray, workers, threads, strict=strict, **settings)
            report = _write(job, pending, written, started, where)
    folder.sweep()
    _check_shards(job, pending, report)
    return report


def _write(
    job: Job, pending: list[int], written: Iterable[ShardResult], started: float, where: str, times: Times | None = None
) -> Report:
    """Take the shards from `written`, which computes and writes them, and report on them."""
    images = errors = 0
    first = ""
    for done in written:
        images, errors, first = images + done.images, errors + done.errors, first or done.first_error
    seconds = time.perf_counter() - started
    spent = times.describe(seconds) if times else ""
    return Report(job.record, job.record.shards - len(pending), images, errors, first, seconds, where, spent)


def _check_shards(job: Job, pending: list[int], report: Report) -> None:
    """Warn if shards of this run and of earlier ones differ in precision.

    Raises:
        ImageError: no image of the whole job could be read.

    """
    earlier = set(range(job.record.shards)) - set(pending)
    groups = earlier, set(pending)
    warn_of_mixing(f"the shards of {job.out}", (_precision_of(job, min(group)) for group in groups if group))
    if report.errors == report.images and (before := _only_errors(job, earlier)) is not None:
        first = before or report.first_error
        raise ImageError(
            f"none of {job.record.images} images could be read, {job.out} holds only errors; first: {first}"
        )


def _precision_of(job: Job, shard: int) -> str | None:
    try:
        file = arrow().parquet.ParquetFile(open_folder(job.out).open(job.record.shard_name(shard)))
    except (OSError, ValueError):  # nothing is said of what cannot be read
        return None
    precision = (file.schema_arrow.metadata or {}).get(PRECISION.encode())
    return precision.decode() if precision else None


def _only_errors(job: Job, shards: set[int]) -> str | None:
    """Return the first error of these shards, or "" without shards; None if one has a vector or cannot be read."""
    first = ""
    folder = open_folder(job.out)
    for index in sorted(shards):
        try:
            shard = arrow().parquet.ParquetFile(folder.open(job.record.shard_name(index)))
            errors = shard.read(["error"]).column("error").to_pylist()
        except (OSError, ValueError):  # nothing is said of what cannot be read
            return None
        if None in errors:
            return None
        first = first or errors[0]
    return first


def _run_here(
    job: Job, pending: list[int], path: Path, *, strict: bool, **settings: Any
) -> tuple[Iterator[ShardResult], str, Times]:
    embedder = BatchEmbedder(path, **settings)
    about = embedder.embedder.describe()
    where = f"{about.precision}, {about.engine} on {about.provider}"
    return local.run(ShardWorker(embedder, job, strict=strict), pending), where, embedder.embedder.times


def _run_on_ray(
    job: Job,
    pending: list[int],
    artifact: Artifact,
    address: str,
    actors: int | None,
    threads: int | None,
    *,
    strict: bool,
    engine: str = "auto",
    provider: str | None = None,
    **settings: Any,
) -> tuple[Iterator[ShardResult], str]:
    nodes = on_ray.connect(address)
    chosen = choose_engine(artifact, provider, threads) if engine == "auto" else engine
    takes_threads, gpu = _needs(artifact, chosen, provider)
    using = on_ray.pool(nodes, actors=actors, threads=threads, gpu=gpu)
    embedder = BatchEmbedder(
        artifact.path.absolute(),
        engine=chosen,
        provider=provider,
        threads=using.threads if takes_threads else None,
        workers=using.threads,
        **settings,
    )
    where = f"Ray, {using.actors} workers of {using.threads} threads{' and a GPU' if gpu else ''}"
    return on_ray.run(ShardWorker(embedder, job, strict=strict), pending, using), where


def _needs(artifact: Artifact, engine: str, provider: str | None) -> tuple[bool, bool]:
    """Return whether an engine has the option `threads`, and whether it runs on a GPU; engines without the option do."""
    module = engine_module(engine)
    takes_threads = not module.NEEDS_GPU
    compiled = choose_compiled(artifact, module, provider) if takes_threads and provider is None else None
    runs_on = compiled.record.provider if compiled else provider
    return takes_threads, not takes_threads or runs_on not in {None, "cpu"}
