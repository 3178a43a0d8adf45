"""A worker of a job: embed shards of the list and write each, whole or not at all."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mimruntime.batch import BatchEmbedder, Row, embed_rows
from mimruntime.batching import NEW_BATCH, NewBatch
from mimruntime.collection.job import Job, WorkList
from mimruntime.collection.reader import Named, read_images
from mimruntime.collection.record import Record
from mimruntime.collection.store import open_folder
from mimruntime.collection.urls import arrow
from mimruntime.errors import ImageError, SpaceError
from mimruntime.storage import Codec, codec_for
from mimruntime.vectors import MODEL, PRECISION, SPACE, encode_rows


@dataclass(frozen=True, slots=True)
class ShardResult:
    """The result of one written shard.

    Attributes:
        images: number of rows.
        errors: number of rows without a vector.
        first_error: the first error, or "".

    """

    images: int
    errors: int = 0
    first_error: str = ""


class ShardWorker:
    """Embed shards of a job into files with one embedder; picklable.

    Args:
        embedder: the embedder, opened at the first shard.
        job: the job.
        strict: stop at the first unreadable image, without writing its shard.

    """

    def __init__(self, embedder: BatchEmbedder, job: Job, *, strict: bool = False) -> None:
        self.embedder, self.job, self.strict = embedder, job, strict
        self._list: WorkList | None = None

    def __call__(self, index: int) -> ShardResult:
        """Embed and write shard `index`; raises as `each` does."""
        return next(self.each([index]))

    def each(self, indices: Sequence[int]) -> Iterator[ShardResult]:
        """Embed and write shards in order, as one stream of images: while one is written, the next is embedded.

        Raises:
            ImageError: an image cannot be read and `strict` is set; earlier shards are written.
            SpaceError: the path of the artifact holds another one than the job was planned with.
            MimError: the artifact or the list cannot be opened here, or a shard cannot be written.

        """
        if self._list is None:
            self._check_artifact()
            self._list = WorkList(self.job)
        images = itertools.chain.from_iterable(self._images(self._list, index) for index in indices)
        rows = embed_rows(self.embedder.embedder, images)
        with ThreadPoolExecutor(1, "mimruntime-write") as writer:
            written: Future[ShardResult] | None = None
            for index in indices:
                of_shard = [self._accepted(row) for row in itertools.islice(rows, self.job.record.images_of(index))]
                before, written = written, writer.submit(self._write, index, of_shard)
                if before is not None:
                    yield before.result()
            if written is not None:
                yield written.result()

    def _check_artifact(self) -> None:
        """Compare what was opened with what the job was planned with: the path may hold another artifact by now."""
        artifact, record = self.embedder.embedder.artifact, self.job.record
        if artifact.graph_sha256 == record.graph_sha256 and self._codec().space == record.embedding_space:
            return
        now = artifact.manifest
        raise SpaceError(
            f"{artifact.path} holds {now.name} (space {now.embedding_space}, graph {artifact.graph_sha256[:12]}…), the job"
            f" in {self.job.out} was planned with {record.model} (space {record.embedding_space}, graph"
            f" {record.graph_sha256[:12]}…); put that artifact there on every machine and run the command again, or choose"
            " another --out"
        )

    def _codec(self) -> Codec:
        record = self.job.record
        return codec_for(self.embedder.embedder.artifact.manifest, record.stored_as, record.dim)

    def _images(self, work: WorkList, index: int) -> Iterator[Named | NewBatch]:
        yield NEW_BATCH  # so that a repeated shard has the same bytes, independent of the shards before it
        yield from read_images(work.entries(index), self.job.columns, work.base, self.job.access)

    def _accepted(self, row: Row) -> Row:
        if self.strict and row.error is not None:
            raise ImageError(f"{row.error}; --strict stops here, finished shards stay in {self.job.out}")
        return row

    def _write(self, index: int, rows: Sequence[Row]) -> ShardResult:
        embedder, record = self.embedder.embedder, self.job.record
        content = shard(rows, record, self._codec(), embedder.describe().precision)
        open_folder(self.job.out).write(record.shard_name(index), content)
        errors = [row.error for row in rows if row.error is not None]
        return ShardResult(len(rows), len(errors), errors[0] if errors else "")


def shard(rows: Sequence[Row], record: Record, codec: Codec, precision: str) -> memoryview:
    """Return a Parquet file of `rows`: path, vector, error, embedding_space; its metadata describe the stored vectors."""
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
    # Vectors do not repeat, so a dictionary would cost time and space.
    pa.parquet.write_table(table, stream, use_dictionary=["path", "embedding_space"], compression="zstd")
    return stream.getbuffer()
