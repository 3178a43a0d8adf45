"""Local folders and object storage behind the same few verbs: list, read, write whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from mimruntime.errors import MissingExtraError, OutputError

_ARROW_SCHEMES = frozenset({"abfs", "abfss", "file", "gcs", "gs", "hdfs", "s3", "viewfs"})
"""Those pyarrow opens by itself; the others go through fsspec."""
_OBJECT_STORES = frozenset({"abfs", "abfss", "az", "gcs", "gs", "memory", "oss", "r2", "s3", "s3a"})
_PARTIAL = ".partial"


class Folder(Protocol):
    """The folder a job writes to."""

    def names(self, below: str = "") -> list[str]:
        """Return the names of the files directly in the folder, or in `below` it; none where it does not exist."""

    def read(self, name: str) -> bytes:
        """Return a file's content; FileNotFoundError where it is not there."""

    def write(self, name: str, content: memoryview | bytes) -> None:
        """Write a file, whole or not at all; OutputError where that cannot be done."""

    def sweep(self) -> None:
        """Remove what killed writers left behind."""


def is_url(name: str) -> bool:
    """Tell `s3://bucket/key` from a path."""
    return "://" in name


def open_folder(name: str) -> Folder:
    """Return the output folder called `name`, a path or a URL."""
    if is_url(name):
        filesystem, path = locate(name)
        if filesystem.type_name != "local":
            return RemoteFolder(name.rstrip("/"), filesystem, path.rstrip("/"))
        name = path
    return LocalFolder(Path(name))


def locate(url: str) -> tuple[Any, str]:
    """Return the file system of pyarrow behind `url`, opened once per process and bucket, and the path in it.

    Raises:
        MissingExtraError: it needs a package that is not installed.
        OSError: it cannot be reached, or the scheme is unknown.

    """
    scheme, _, rest = url.partition("://")
    return _filesystem(scheme, rest.partition("/")[0]), rest


@functools.cache
def _filesystem(scheme: str, bucket: str) -> Any:
    fs = arrow().fs
    if scheme in _ARROW_SCHEMES:
        # The bucket alone: an image's name may hold characters that a URI must not.
        return fs.FileSystem.from_uri("file:///" if scheme == "file" else f"{scheme}://{bucket}")[0]
    try:
        import fsspec  # noqa: PLC0415 - optional

        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except ImportError as error:
        raise MissingExtraError(f"{scheme}:// (fsspec and its package for it)", extra="ray") from error
    except ValueError as error:
        raise OSError(f"{scheme}:// is no storage that pyarrow or fsspec knows") from error


def arrow() -> ModuleType:
    """Return pyarrow with its parquet, dataset-free parts loaded.

    Raises:
        MissingExtraError: it is not installed.

    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional
        import pyarrow.fs  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("a folder of shards", extra="parquet") from error
    module: ModuleType = pa
    return module


class LocalFolder:
    """A folder of this machine, or of a disk that several share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self, below: str = "") -> list[str]:
        """Return file names; see `Folder`."""
        folder = self._path / below
        if self._path.exists() and not self._path.is_dir():
            raise OutputError(f"{self._path} is a file; expected a folder for the shards, choose another --out")
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return (self._path / name).read_bytes()

    def write(self, name: str, content: memoryview | bytes) -> None:
        """Write beside the place, flush to disk, rename."""
        target = self._path / name
        with _said(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, stage = tempfile.mkstemp(prefix=f".{target.name}.", suffix=_PARTIAL, dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(handle)
                Path(stage).chmod(0o644)
                Path(stage).replace(target)
            except BaseException:
                Path(stage).unlink(missing_ok=True)
                raise

    def sweep(self) -> None:
        """Remove hidden partial files."""
        for path in self._path.rglob(f".*{_PARTIAL}"):
            path.unlink(missing_ok=True)


class RemoteFolder:
    """A folder of a file system of pyarrow or fsspec: in an object store, an object appears when it is complete."""

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        self._url, self._filesystem, self._path = url, filesystem, path
        self._is_object_store = url.partition("://")[0] in _OBJECT_STORES

    def names(self, below: str = "") -> list[str]:
        """Return file names; see `Folder`."""
        folder = f"{self._path}/{below}".rstrip("/")
        selector = arrow().fs.FileSelector(folder, allow_not_found=True)
        with _said(self._url):
            return sorted(info.base_name for info in self._filesystem.get_file_info(selector))

    def read(self, name: str) -> bytes:
        """Return an object's content."""
        with self._filesystem.open_input_stream(f"{self._path}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def write(self, name: str, content: memoryview | bytes) -> None:
        """Put one object; where there are files instead, write beside the place and rename."""
        place = f"{self._path}/{name}"
        folder, _, base = place.rpartition("/")
        stage = place if self._is_object_store else f"{folder}/.{base}.{uuid.uuid4().hex}{_PARTIAL}"
        with _said(f"{self._url}/{name}"):
            if stage != place:
                self._filesystem.create_dir(folder, recursive=True)
            with self._filesystem.open_output_stream(stage) as stream:
                stream.write(content)
            if stage != place:
                self._filesystem.move(stage, place)

    def sweep(self) -> None:
        """Remove hidden partial files, of which an object store has none."""
        if self._is_object_store:
            return
        with _said(self._url):
            for info in self._filesystem.get_file_info(arrow().fs.FileSelector(self._path, recursive=True)):
                if info.base_name.startswith(".") and info.base_name.endswith(_PARTIAL):
                    self._filesystem.delete_file(info.path)


@contextlib.contextmanager
def _said(target: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
