"""A job: its artifact, its list of images and its shards, recorded in the output folder so that it can resume."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mimruntime.artifact import Artifact
from mimruntime.collection.access import LOCAL_ONLY, Access
from mimruntime.collection.inputs import Columns, Entry, find_entries
from mimruntime.collection.record import RECORD, Record, check_same, job_digest, read_record
from mimruntime.collection.store import open_folder
from mimruntime.collection.urls import arrow, is_url
from mimruntime.errors import OutputError
from mimruntime.storage import Store, codec_for

_BASE = b"base"
"""Metadata of the list: the folder to which relative names in the list and in Parquet files refer."""
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """The description of a job for a worker, small enough to send.

    Attributes:
        out: the output folder, absolute path or URL.
        columns: columns of Parquet inputs.
        record: the record of the shards.
        access: URLs that Parquet cells may name, and the largest object.

    """

    out: str
    columns: Columns
    record: Record
    access: Access = LOCAL_ONLY

    def pending(self) -> list[int]:
        """Return the missing shards, in order."""
        present = set(open_folder(self.out).names())
        return [index for index in range(self.record.shards) if self.record.shard_name(index) not in present]


def plan(
    inputs: Iterable[str],
    out: str,
    artifact: Artifact,
    *,
    columns: Columns,
    shard_size: int,
    access: Access = LOCAL_ONLY,
    store: Store = "fp32",
    dims: int | None = None,
) -> Job:
    """List the inputs, and start a job in the folder `out` or resume the job there.

    The list is written to a file while the inputs are expanded. Only an index entry per shard and the names of one folder,
    or one listing of an object store, are in memory at a time. Relative names keep referring to the folder in which the
    job was started.

    Raises:
        ImageError: an input is missing, or there are no images.
        OptionError: a Parquet file lacks the columns, a list has a name that `access` does not allow, or the artifact does
            not support `store` or `dims`.
        OutputError: the folder contains other files or another job.
        SpaceError: the folder holds vectors of another embedding space.

    """
    where = out if is_url(out) else str(Path(out).absolute())
    codec = codec_for(artifact.manifest, store, dims)
    found = read_record(where)
    with tempfile.NamedTemporaryFile() as stream:
        images, shards, list_digest = _write_list(stream, find_entries(inputs, columns, access), columns, shard_size)
        stream.flush()
        graph = artifact.graph_sha256
        record = Record(
            model=artifact.manifest.name,
            embedding_space=codec.space,
            dim=codec.dim,
            graph_sha256=graph,
            images=images,
            shards=shards,
            shard_size=shard_size,
            digest=job_digest(list_digest, codec, graph),
            stored_as=codec.store,
        )
        if found is None:
            found = _begin(where, record, Path(stream.name))
    check_same(where, found, record, list_digest)
    return Job(out=where, columns=columns, record=found, access=access)


def _begin(out: str, record: Record, work_list: Path) -> Record:
    """Claim the folder for this job; return the record in it, which is another job's if that was first."""
    folder = open_folder(out)
    folder.upload(record.list_name, work_list)
    if folder.create(RECORD, record.encode()):
        return record
    found = read_record(out)
    if found is None:
        raise OutputError(f"{out}: another job is starting in it; run the command again, or choose another --out")
    if found.digest != record.digest:
        folder.remove(record.list_name)
    return found


class WorkList:
    """The open work list of a job; it is read in parts.

    Args:
        job: a job from `plan`.

    Attributes:
        base: absolute folder to which relative names of images refer.

    Raises:
        OutputError: the list is damaged or missing, for example because the output folder is not shared between machines.

    """

    def __init__(self, job: Job) -> None:
        self._job = job
        with self._said():
            file = open_folder(job.out).open(job.record.list_name)
            self._file = arrow().parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            self.base = os.fsdecode(self._file.schema_arrow.metadata[_BASE])

    def entries(self, index: int) -> list[Entry]:
        """Return the entries of one shard; raises as the class does."""
        with self._said():
            columns = self._file.read_row_group(index).to_pydict()  # row group i has the entries of shard i
        rows = zip(columns["source"], columns["start"], columns["stop"], strict=True)
        return [Entry(os.fsdecode(source), start, stop) for source, start, stop in rows]

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        place = f"{self._job.out}/{self._job.record.list_name}"
        try:
            yield
        except FileNotFoundError as error:
            raise OutputError(
                f"{place} is not there; every machine must see --out: give a URL or a folder on a shared disk"
            ) from error
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise OutputError(
                f"{place} cannot be read ({reason}); where it is damaged, choose another --out"
            ) from error


def cut(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """Yield groups of `size` images, the last one smaller; a Parquet file may be split between groups."""
    group: list[Entry] = []
    room = size
    for entry in entries:
        rest = entry
        while rest.images > room:
            middle = rest.start + room
            yield [*group, Entry(rest.source, rest.start, middle)]
            group, room, rest = [], size, Entry(rest.source, middle, rest.stop)
        group.append(rest)
        room -= rest.images
        if not room:
            yield group
            group, room = [], size
    if group:
        yield group


def _write_list(stream: Any, entries: Iterator[Entry], columns: Columns, shard_size: int) -> tuple[int, int, str]:
    """Write the list with a row group per shard; return the numbers of images and shards, and the digest."""
    pa = arrow()
    base = os.getcwd()  # noqa: PTH109 - a text
    fields = [("source", pa.binary()), ("start", pa.int64()), ("stop", pa.int64())]
    schema = pa.schema(fields, metadata={_BASE: os.fsencode(base)})
    digest = hashlib.sha256(msgspec.json.encode((shard_size, columns.image, columns.path)))
    images = shards = 0
    with pa.parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for group in cut(entries, shard_size):
            for entry in group:
                name = entry.source if is_url(entry.source) else os.path.join(base, entry.source)  # noqa: PTH118
                digest.update(b"%s\0%d\0%d\n" % (os.fsencode(name), entry.start, entry.stop))
            rows = [(os.fsencode(entry.source), entry.start, entry.stop) for entry in group]
            writer.write_batch(pa.record_batch([pa.array(part) for part in zip(*rows, strict=True)], schema=schema))
            images += sum(entry.images for entry in group)
            shards += 1
    return images, shards, digest.hexdigest()
