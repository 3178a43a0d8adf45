"""A job: which artifact turns which list of images into which shards, kept in the output folder so it can go on."""

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
from mimruntime.collection.inputs import Columns, Entry, find_entries
from mimruntime.collection.store import open_folder
from mimruntime.collection.urls import arrow, is_url
from mimruntime.errors import ImageError, OutputError, SpaceError

FORMAT = "mimexport-shards"
SCHEMA = 1
RECORD = "_job/record.json"
"""Underscored, so that readers of a folder of Parquet files pass over it."""
_BASE = b"base"
"""Metadata of the list: the folder that relative names start from, in it and in Parquet files."""
_BUFFER_BYTES = 1 << 20


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`_job/record.json`: what the shards beside it are."""

    format: str = FORMAT
    schema: int = SCHEMA
    model: str
    embedding_space: str
    dim: int
    graph_sha256: str
    images: int
    shards: int
    shard_size: int
    digest: str
    """sha256 of the work list: every name in order, the columns, the shard size."""

    @property
    def list_name(self) -> str:
        """Where the work list lies; two jobs that begin in one folder do not share it."""
        return f"_job/list-{self.digest[:12]}.parquet"

    def shard_name(self, index: int) -> str:
        """Return the file name of one shard: its place in the list, and the list it belongs to."""
        return f"part-{index:07d}-{self.digest[:12]}.parquet"


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a worker needs to know, small enough to send.

    Attributes:
        out: the output folder, absolute path or URL.
        columns: of Parquet inputs.
        record: what is written.

    """

    out: str
    columns: Columns
    record: Record

    def pending(self) -> list[int]:
        """Return the shards that are not there yet, in order."""
        present = set(open_folder(self.out).names())
        return [index for index in range(self.record.shards) if self.record.shard_name(index) not in present]


def plan(inputs: Iterable[str], out: str, artifact: Artifact, *, columns: Columns, shard_size: int) -> Job:
    """List the inputs, and begin a job in the folder `out` or take up the one that is there.

    The list goes to a file as it is found; what is held of it is an entry of its index per shard, and one folder's
    names, or one listing of an object store, at a time. Relative names go on meaning what they meant where the job
    was begun.

    Raises:
        ImageError: an input that is not there, or no images at all.
        OptionError: a Parquet file without the columns.
        OutputError: the folder holds something else, or another job.
        SpaceError: the folder holds vectors of another embedding space.

    """
    where = out if is_url(out) else str(Path(out).absolute())
    folder = open_folder(where)
    found = _read_record(where)
    with tempfile.NamedTemporaryFile() as stream:
        images, shards, digest = _write_list(stream, find_entries(inputs, columns), columns, shard_size)
        manifest = artifact.manifest
        record = Record(
            model=manifest.name,
            embedding_space=manifest.embedding_space,
            dim=manifest.embedding.dim,
            graph_sha256=artifact.graph_sha256,
            images=images,
            shards=shards,
            shard_size=shard_size,
            digest=digest,
        )
        if found is None:
            stream.flush()
            folder.upload(record.list_name, Path(stream.name))
            folder.write(RECORD, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
            found = _read_record(where) or record  # another job may have begun here meanwhile
        _check_same(where, found, record)
    return Job(out=where, columns=columns, record=record)


class WorkList:
    """The work list of a job, opened; it is read in parts.

    Args:
        job: begun by `plan`.

    Attributes:
        base: absolute folder that relative names of images start from.

    Raises:
        OutputError: missing, as where the output folder is not shared between machines, or damaged.

    """

    def __init__(self, job: Job) -> None:
        self._job = job
        with self._said():
            file = open_folder(job.out).open(job.record.list_name)
            self._file = arrow().parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            self.base = os.fsdecode(self._file.schema_arrow.metadata[_BASE])

    def entries(self, index: int) -> list[Entry]:
        """Return the entries of one shard; raises as the class."""
        with self._said():
            columns = self._file.read_row_group(index).to_pydict()  # row group i is what shard i holds
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
    """Yield groups of `size` images, the last one smaller; rows of a Parquet file are divided where a group is full."""
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
    """Write the list, a row group per shard; return images, shards, digest."""
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
    if not images:
        raise ImageError("the inputs hold no images")
    return images, shards, digest.hexdigest()


class _Kind(msgspec.Struct):
    """What every record says of itself, whoever wrote it."""

    format: str
    schema: int


def _read_record(out: str) -> Record | None:
    """Return the record of the job in `out`; None where the folder is empty or not there."""
    folder = open_folder(out)
    try:
        raw = folder.read(RECORD)
        kind = msgspec.json.decode(raw, type=_Kind)
        if (kind.format, kind.schema) == (FORMAT, SCHEMA):
            return msgspec.json.decode(raw, type=Record)
    except (FileNotFoundError, NotADirectoryError):
        others = [name for name in folder.names() if not name.startswith(("_", "."))]
        if others:
            raise OutputError(
                f"{out} holds other files ({others[0]} …) and no job of mimexport; it is left alone, choose another --out"
            ) from None
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise OutputError(f"{out}/{RECORD} is not readable ({error}); choose another --out") from error
    raise OutputError(
        f"{out}/{RECORD} is of the kind {kind.format} {kind.schema}, this program reads {FORMAT} {SCHEMA};"
        " choose another --out"
    )


def _check_same(out: str, found: Record, wanted: Record) -> None:
    if found.embedding_space != wanted.embedding_space:
        raise SpaceError(
            f"{out} holds vectors of space {found.embedding_space} ({found.model}), this artifact ({wanted.model})"
            f" embeds into {wanted.embedding_space}; choose another --out"
        )
    if found.graph_sha256 != wanted.graph_sha256:
        raise OutputError(
            f"{out} was begun with another graph of the same space ({found.model}, {found.graph_sha256[:12]}…, now"
            f" {wanted.graph_sha256[:12]}…); go on with that artifact, or choose another --out"
        )
    if found.digest != wanted.digest:
        raise OutputError(
            f"{out} was begun with another list of images ({found.images} in shards of {found.shard_size}, now"
            f" {wanted.images} in shards of {wanted.shard_size}); give the inputs, columns and --shard-size it was"
            " begun with, or choose another --out for the new list"
        )
