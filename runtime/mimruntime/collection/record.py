"""The record of a folder of shards: what they are, written once, by the job that begins the folder."""

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
"""The schema whose digest is that of the list alone; its folders are still taken up."""
RECORD = "_job/record.json"
"""Underscored, so that readers of a folder of Parquet files pass over it."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`_job/record.json`: what the shards beside it are."""

    format: str = FORMAT
    schema: int = SCHEMA
    model: str
    embedding_space: str
    dim: int
    """That are kept of a vector; fewer than the artifact's where the space says "SPACE/DIM"."""
    graph_sha256: str
    images: int
    shards: int
    shard_size: int
    digest: str
    """Of the job; see `job_digest`."""
    stored_as: Store = "fp32"

    @property
    def list_name(self) -> str:
        """Where the work list lies; two jobs that begin in one folder do not share it."""
        return f"_job/list-{self.digest[:12]}.parquet"

    def shard_name(self, index: int) -> str:
        """Return the file name of one shard: its place in the list, and the job it belongs to."""
        return f"part-{index:07d}-{self.digest[:12]}.parquet"

    def images_of(self, index: int) -> int:
        """Return how many images one shard holds."""
        return min(self.shard_size, self.images - index * self.shard_size)

    def encode(self) -> bytes:
        """Return the file's content."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def job_digest(list_digest: str, codec: Codec, graph_sha256: str) -> str:
    """Return the sha256 that tells jobs, and so their shards, apart: by list, space, graph, and how vectors are stored.

    Args:
        list_digest: sha256 of the work list: every name in order, the columns, the shard size.
        codec: of the vectors, which knows their space.
        graph_sha256: of the artifact's graph.

    """
    parts: tuple[object, ...] = (list_digest, codec.space, graph_sha256)
    if codec.store != "fp32":  # jobs from before there was a choice go on
        parts = (*parts, codec.labels())
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def read_record(out: str) -> Record | None:
    """Return the record of the job in `out`; None where the folder is empty or not there.

    Raises:
        OutputError: the folder holds other files, or a record that this program cannot read.

    """
    folder = open_folder(out)
    try:
        return records.decode(folder.read(RECORD), Record, format_name=FORMAT, schema=SCHEMA)
    except (FileNotFoundError, NotADirectoryError):
        others = [name for name in folder.names() if not name.startswith(("_", "."))]
        if others:
            raise OutputError(
                f"{out} holds other files ({others[0]} …) and no job of mimexport; it is left alone, choose another --out"
            ) from None
        return None
    except OSError as error:
        raise OutputError(f"{out}/{RECORD} cannot be read ({error}); choose another --out") from error
    except ValueError as error:
        raise OutputError(f"{out}/{RECORD} {error}; choose another --out") from error


def check_same(out: str, found: Record, wanted: Record, list_digest: str) -> None:
    """Refuse to go on with `found`, the record in `out`, where the job of `wanted` and `list_digest` is another.

    Raises:
        OutputError: another graph or list.
        SpaceError: another embedding space.

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
