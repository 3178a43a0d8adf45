"""Write and read files of vectors, `.parquet` or `.npz`; files are written atomically."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Protocol

import numpy as np

from mimruntime.errors import MissingExtraError, OptionError, OutputError, VectorsError
from mimruntime.storage import Codec, read_codec
from mimruntime.writing import staged_file, sweep

SUFFIXES = (".npz", ".parquet")
_GROUP_ROWS = 2048
SPACE, MODEL, PRECISION = "embedding_space", "model", "precision"


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Content of a file of vectors, one entry per image.

    Attributes:
        paths: n names, in the order they were embedded.
        vectors: float32 (n, D), unit length, decoded from `codes`; NaN in rows of images that could not be read.
        errors: n texts; None in rows with a vector.
        space: embedding space; compare only vectors with equal spaces.
        model: name of the artifact.
        precision: precision in which the vectors were computed; None in older files.
        codes: (n, width), the stored codes: float32, float16, int8, or packed bits; see `mimruntime.storage.Codec`.
        codec: the codec of `codes`.

    """

    paths: tuple[str, ...]
    vectors: np.ndarray
    errors: tuple[str | None, ...]
    space: str
    model: str
    precision: str | None
    codes: np.ndarray
    codec: Codec


class Writer(Protocol):
    """Writes one row at a time."""

    def add(self, path: str, vector: np.ndarray | None, error: str | None) -> None:
        """Append a row with a vector, float32 (D,), or with an error."""


@contextlib.contextmanager
def open_writer(path: str | Path, *, codec: Codec, model: str, precision: str) -> Iterator[Writer]:
    """Yield a writer for `path`; the file appears only if the block succeeds.

    `.parquet` is written in groups of rows. `.npz` is kept in memory until the end.

    Args:
        path: name with a suffix in `SUFFIXES`; an existing file is replaced at the end.
        codec: the codec for the vectors; storage type and embedding space are stored in the file.
        model: name of the artifact, stored in the file.
        precision: precision of the vectors, stored in the file.

    Raises:
        OptionError: the suffix is unknown.
        MissingExtraError: `.parquet` needs pyarrow.
        OutputError: the file cannot be written; raised before the block, unless the disk fills up later.

    """
    target = Path(path)
    check_suffix(target)
    arrow = _arrow() if target.suffix.lower() == ".parquet" else None
    if target.is_dir():
        raise OutputError(f"{target} is a folder; give the name of a file in it: {target / 'vectors.parquet'}")
    sweep(target.parent, target.name)
    labels = {SPACE: codec.space, MODEL: model, PRECISION: precision} | codec.labels()
    with staged_file(target) as stream:
        if arrow is None:
            writer: _NpzWriter | _ParquetWriter = _NpzWriter(stream, codec, labels)
        else:
            writer = _ParquetWriter(arrow, stream, codec, labels)
        try:
            yield writer
            writer.finish()
        finally:
            writer.release()


def is_file_name(out: str) -> bool:
    """Return whether `--out` names one file of vectors, and not a folder or URL of shards.

    Raises:
        OptionError: the suffix is unknown, or a URL names a single file.

    """
    suffix = os.path.splitext(out)[1].lower()  # noqa: PTH122 - it may be a URL
    if "://" in out:
        if suffix in SUFFIXES:
            raise OptionError(f"{out}: one file is written to a local path; at a URL, name a folder for the shards")
        return False
    if out.endswith(("/", os.sep)) or not suffix or (suffix not in SUFFIXES and Path(out).is_dir()):
        return False
    check_suffix(Path(out))
    return True


def check_suffix(path: Path) -> None:
    """Raise OptionError if the suffix of a file name is unknown.

    Raises:
        OptionError: the message lists the known suffixes.

    """
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"{path}: the name must end in {' or '.join(SUFFIXES)}, or in / for a folder of shards")


def read_vectors(path: str | Path) -> Vectors:
    """Read a file that `open_writer` wrote.

    Raises:
        OptionError: the suffix is unknown.
        MissingExtraError: `.parquet` needs pyarrow.
        VectorsError: the file is missing, damaged, or not written by this program.

    """
    source = Path(path)
    check_suffix(source)
    read = _read_npz if source.suffix.lower() == ".npz" else _read_parquet
    try:
        return read(source)
    except MissingExtraError:
        raise
    except FileNotFoundError as error:
        raise VectorsError(f"{source}: no such file") from error
    except Exception as error:  # zip, npy, zlib and arrow each have their own types
        reason = str(error).split("\n")[0] or type(error).__name__
        raise VectorsError(
            f"{source} is not a readable file of vectors ({reason}); write it again: mimexport embed"
        ) from error


class _NpzWriter:
    def __init__(self, stream: IO[bytes], codec: Codec, labels: dict[str, str]) -> None:
        self._stream = stream
        self._labels: dict[str, Any] = {name: np.array(text) for name, text in labels.items()}
        self._codec = codec
        self._rows: list[tuple[str, np.ndarray | None, str | None]] = []

    def add(self, path: str, vector: np.ndarray | None, error: str | None) -> None:
        self._rows.append((path, vector, error))

    def finish(self) -> None:
        codes = np.full((len(self._rows), self._codec.width), _blank(self._codec.dtype), self._codec.dtype)
        for row, (_, vector, _) in zip(codes, self._rows, strict=True):
            if vector is not None:
                row[:] = self._codec.encode(vector[None])[0]
        paths = np.array([path for path, _, _ in self._rows], dtype=np.str_)
        errors = np.array([error or "" for _, _, error in self._rows], dtype=np.str_)
        np.savez(self._stream, path=paths, vectors=codes, error=errors, **self._labels)

    def release(self) -> None:
        self._rows.clear()


class _ParquetWriter:
    def __init__(self, arrow: ModuleType, stream: IO[bytes], codec: Codec, labels: dict[str, str]) -> None:
        self._arrow: Any = arrow
        vector = arrow.list_(arrow.from_numpy_dtype(codec.dtype), codec.width)
        fields = [("path", arrow.string()), ("vector", vector), ("error", arrow.string())]
        self._schema = arrow.schema(fields, metadata=labels)
        self._file = arrow.parquet.ParquetWriter(stream, self._schema)
        self._codec = codec
        self._rows: list[tuple[str, np.ndarray | None, str | None]] = []

    def add(self, path: str, vector: np.ndarray | None, error: str | None) -> None:
        self._rows.append((path, vector, error))
        if len(self._rows) == _GROUP_ROWS:
            self._write_group()

    def finish(self) -> None:
        if self._rows:
            self._write_group()
        self._file.close()

    def release(self) -> None:
        # Mark it as closed: otherwise it writes a footer into the closed file when it is garbage-collected.
        self._file.is_open = False

    def _write_group(self) -> None:
        paths, vectors, errors = zip(*self._rows, strict=True)
        flat = encode_rows(self._codec, vectors).ravel()
        # From buffers, because `from_arrays` with a mask imports pyarrow.compute, which takes about 0.15 s.
        valid = np.packbits([vector is not None for vector in vectors], bitorder="little")
        column = self._arrow.Array.from_buffers(
            self._schema.field("vector").type,
            len(vectors),
            [self._arrow.py_buffer(valid)],
            children=[self._arrow.array(flat)],
        )
        columns = [self._arrow.array(paths), column, self._arrow.array(errors, self._arrow.string())]
        self._file.write_batch(self._arrow.record_batch(columns, schema=self._schema))
        self._rows.clear()


def encode_rows(codec: Codec, vectors: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return the codes (n, width) of unit vectors, with zeros for None."""
    codes = np.zeros((len(vectors), codec.width), codec.dtype)
    there = [vector is not None for vector in vectors]
    if any(there):
        codes[there] = codec.encode(np.stack([vector for vector in vectors if vector is not None]))
    return codes


def _blank(dtype: np.dtype[Any]) -> float:
    """Return the placeholder for missing vectors: NaN for floats, 0 for integers."""
    return np.nan if dtype.kind == "f" else 0


def _arrow() -> ModuleType:
    try:
        import pyarrow as pa  # noqa: PLC0415 - the one place that needs it
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("a .parquet file", extra="parquet") from error
    module: ModuleType = pa
    return module


def _read_npz(path: Path) -> Vectors:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        labels = {name: str(arrays[name]) for name in arrays.files if arrays[name].ndim == 0}
        errors = tuple(error or None for error in arrays["error"].tolist())
        return _vectors(tuple(arrays["path"].tolist()), arrays["vectors"], errors, labels)


def _read_parquet(path: Path) -> Vectors:
    arrow: Any = _arrow()
    with path.open("rb") as stream:
        table = arrow.parquet.ParquetFile(stream).read()
    column = table.column("vector").combine_chunks()
    dim = column.type.list_size
    found = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    codes = np.full((len(column), dim), _blank(found.dtype), found.dtype)
    codes[np.asarray(column.is_valid())] = found
    labels = {name.decode(): text.decode() for name, text in table.schema.metadata.items()}
    errors = tuple(table.column("error").to_pylist())
    return _vectors(tuple(table.column("path").to_pylist()), codes, errors, labels)


def _vectors(
    paths: tuple[str, ...], codes: np.ndarray, errors: tuple[str | None, ...], labels: dict[str, str]
) -> Vectors:
    codec = read_codec(labels, labels[SPACE], codes.shape[1])
    if codes.shape[1] != codec.width or codes.dtype != codec.dtype:
        raise ValueError(f"{codec.store} of {codec.dim} dimensions, and {codes.dtype} of {codes.shape[1]}")
    there = [error is None for error in errors]
    vectors = np.full((len(codes), codec.dim), np.nan, np.float32)
    vectors[there] = codec.decode(codes[there])
    return Vectors(paths, vectors, errors, codec.space, labels[MODEL], labels.get(PRECISION), codes=codes, codec=codec)
