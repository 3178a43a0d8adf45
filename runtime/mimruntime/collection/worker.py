"""What every worker does: embed one shard of the list and write it, whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mimruntime.batch import BatchEmbedder, Row, embed_rows
from mimruntime.collection.job import Job, WorkList
from mimruntime.collection.reader import read_images
from mimruntime.collection.record import Record
from mimruntime.collection.store import open_folder
from mimruntime.collection.urls import arrow
from mimruntime.errors import ImageError
from mimruntime.storage import Codec, codec_for
from mimruntime.vectors import MODEL, PRECISION, SPACE, encode_rows


@dataclass(frozen=True, slots=True)
class ShardResult:
    """One shard that is written.

    Attributes:
        images: its rows.
        errors: how many of them have no vector.
        first_error: the first one's text, or "".

    """

    images: int
    errors: int = 0
    first_error: str = ""


class ShardWorker:
    """Holds one embedder, and turns shards of a job into files; picklable.

    Args:
        embedder: opened at the first shard.
        job: what to do.
        strict: stop at the first image that cannot be read, without writing its shard.

    """

    def __init__(self, embedder: BatchEmbedder, job: Job, *, strict: bool = False) -> None:
        self.embedder, self.job, self.strict = embedder, job, strict
        self._list: WorkList | None = None

    def __call__(self, index: int) -> ShardResult:
        """Embed and write shard `index`.

        Raises:
            ImageError: an image that cannot be read, if `strict`.
            MimError: the artifact or the list does not open here, or the shard cannot be written.

        """
        if self._list is None:
            self._list = WorkList(self.job)
        images = read_images(self._list.entries(index), self.job.columns, self._list.base, self.job.access)
        rows, errors = [], []
        for row in embed_rows(self.embedder.embedder, images):
            if row.error is not None:
                errors.append(row.error)
                if self.strict:
                    raise ImageError(f"{row.error}; --strict stops here, finished shards stay in {self.job.out}")
            rows.append(row)
        name = self.job.record.shard_name(index)
        embedder, record = self.embedder.embedder, self.job.record
        codec = codec_for(embedder.artifact.manifest, record.stored_as, record.dim)
        open_folder(self.job.out).write(name, shard(rows, record, codec, embedder.describe().precision))
        return ShardResult(len(rows), len(errors), errors[0] if errors else "")


def shard(rows: Sequence[Row], record: Record, codec: Codec, precision: str) -> memoryview:
    """Return a Parquet file of `rows`: path, vector, error, embedding_space; its metadata say how vectors are stored."""
    pa = arrow()
    missing = np.array([row.vector is None for row in rows])
    flat = encode_rows(codec, [row.vector for row in rows]).ravel()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), codec.width, mask=pa.array(missing))
    table = pa.table(
        {
            "path": pa.array([row.path for row in rows], pa.string()),
            "vector": vectors,
            "error": pa.array([row.error for row in rows], pa.string()),
            "embedding_space": pa.array([record.embedding_space] * len(rows), pa.string()),
        },
        metadata={
            SPACE: record.embedding_space,
            MODEL: record.model,
            "graph_sha256": record.graph_sha256,
            PRECISION: precision,
            **codec.labels(),
        },
    )
    stream = io.BytesIO()
    # Vectors do not repeat: a dictionary of them costs time and space.
    pa.parquet.write_table(table, stream, use_dictionary=["path", "embedding_space"], compression="zstd")
    return stream.getbuffer()
