"""The record of a folder of shards, written once by the job that starts the folder."""

from __future__ import annotations

import hashlib

import msgspec

from mimruntime import records
from mimruntime.collection.store import open_folder
from mimruntime.errors import OutputError, SpaceError
from mimruntime.storage import Codec, Store

FORMAT = "mimexport-shards"
SCHEMA = 2
_LIST_ONLY = 1
"""The schema whose digest covers only the list; its folders can still be resumed."""
RECORD = "_job/record.json"
"""Starts with an underscore, so that readers of a folder of Parquet files skip it."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`_job/record.json`: the description of the shards beside it."""

    format: str = FORMAT
    schema: int = SCHEMA
    model: str
    embedding_space: str
    dim: int
    """Stored dimensions of a vector; fewer than the artifact's if the space is "SPACE/DIM"."""
    graph_sha256: str
    images: int
    shards: int
    shard_size: int
    digest: str
    """The job's digest; see `job_digest`."""
    stored_as: Store = "fp32"

    @property
    def list_name(self) -> str:
        """Name of the work list; two jobs that start in one folder have different lists."""
        return f"_job/list-{self.digest[:12]}.parquet"

    def shard_name(self, index: int) -> str:
        """Return the file name of one shard, made of its index and its job's digest."""
        return f"part-{index:07d}-{self.digest[:12]}.parquet"

    def images_of(self, index: int) -> int:
        """Return the number of images in one shard."""
        return min(self.shard_size, self.images - index * self.shard_size)

    def encode(self) -> bytes:
        """Return the file's content."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def job_digest(list_digest: str, codec: Codec, graph_sha256: str) -> str:
    """Return a sha256 that identifies a job and its shards: by list, space, graph, and stored form of the vectors.

    Args:
        list_digest: sha256 of the work list: every name in order, the columns, the shard size.
        codec: encodes the vectors and knows their space.
        graph_sha256: sha256 of the artifact's graph.

    """
    parts: tuple[object, ...] = (list_digest, codec.space, graph_sha256)
    if codec.store != "fp32":  # float32 adds nothing, so that older jobs can be resumed
        parts = (*parts, codec.labels())
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def read_record(out: str) -> Record | None:
    """Return the record of the job in `out`; None if the folder is empty or missing.

    Raises:
        OutputError: the folder contains other files, or a record that this version cannot read.

    """
    folder = open_folder(out)
    try:
        return records.decode(folder.read(RECORD), Record, format_name=FORMAT, schema=SCHEMA)
    except (FileNotFoundError, NotADirectoryError):
        others = [name for name in folder.names() if not name.startswith(("_", "."))]
        if others:
            raise OutputError(
                f"{out} holds other files ({others[0]} …) and no job of mimexport; nothing was changed, choose another --out"
            ) from None
        return None
    except OSError as error:
        raise OutputError(f"{out}/{RECORD} cannot be read ({error}); choose another --out") from error
    except ValueError as error:
        raise OutputError(f"{out}/{RECORD} {error}; choose another --out") from error


def check_same(out: str, found: Record, wanted: Record, list_digest: str) -> None:
    """Refuse to resume `found`, the record in `out`, if the job of `wanted` and `list_digest` is another.

    Raises:
        OutputError: the graph, the list or the stored form differs.
        SpaceError: the embedding space differs.

    """
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
    if found.stored_as != wanted.stored_as:
        raise OutputError(
            f"{out} holds vectors stored as {found.stored_as}, asked for are {wanted.stored_as}; give --store"
            f" {found.stored_as}, or choose another --out"
        )
    if found.digest != (list_digest if found.schema == _LIST_ONLY else wanted.digest):
        raise OutputError(
            f"{out} was begun with another list of images ({found.images} in shards of {found.shard_size}, now"
            f" {wanted.images} in shards of {wanted.shard_size}); give the inputs, columns and --shard-size it was"
            " begun with, or choose another --out for the new list"
        )
