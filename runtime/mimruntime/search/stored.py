"""Read the output of `mimexport embed`: a file or a folder of shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mimruntime.collection.record import RECORD, read_record
from mimruntime.errors import VectorsError
from mimruntime.precisions import warn_of_mixing
from mimruntime.vectors import SUFFIXES, Vectors, read_vectors


def is_stored(source: Path) -> bool:
    """Return whether `source` has the name of a file of vectors, or is a folder of shards."""
    return source.suffix.lower() in SUFFIXES or (source / RECORD).is_file()


def read_stored(source: Path) -> Vectors:
    """Return the vectors of a file, or of every shard of a finished job.

    Raises:
        VectorsError: the vectors are missing or damaged, or their job is not finished.
        MissingExtraError: a Parquet file needs pyarrow.

    """
    if not source.is_dir():
        return read_vectors(source)
    record = read_record(str(source))
    if record is None:
        raise VectorsError(f"{source} holds no shards; write them: mimexport embed … --out {source}/")
    files = [source / record.shard_name(index) for index in range(record.shards)]
    missing = sum(not file.exists() for file in files)
    if missing:
        raise VectorsError(f"{source} lacks {missing} of {record.shards} shards; run its `mimexport embed` again first")
    return _joined([read_vectors(file) for file in files])


def _joined(parts: list[Vectors]) -> Vectors:
    warn_of_mixing("the shards", (part.precision for part in parts))
    return replace(
        parts[0],
        paths=tuple(path for part in parts for path in part.paths),
        vectors=np.concatenate([part.vectors for part in parts]),
        errors=tuple(error for part in parts for error in part.errors),
        codes=np.concatenate([part.codes for part in parts]),
    )
