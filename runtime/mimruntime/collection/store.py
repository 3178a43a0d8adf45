"""Local folders and object storage behind the same few verbs: list, read, write whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mimruntime.collection.urls import arrow, is_url, locate
from mimruntime.errors import OutputError

_OBJECT_STORES = frozenset({"abfs", "abfss", "az", "gcs", "gs", "memory", "oss", "r2", "s3", "s3a"})
_PARTIAL = ".partial"
_STALE_S = 3600
"""A partial file that has not grown for so long belongs to nobody; a younger one may be another writer's."""
_PIECE = 1 << 20


class Folder(Protocol):
    """The folder a job writes to."""

    def names(self) -> list[str]:
        """Return the names of the files directly in the folder; none where it does not exist."""

    def read(self, name: str) -> bytes:
        """Return a file's content; FileNotFoundError where it is not there."""

    def open(self, name: str) -> Any:
        """Open a file for pyarrow, which reads the parts it wants; FileNotFoundError where it is not there."""

    def write(self, name: str, content: memoryview | bytes) -> None:
        """Write a file, whole or not at all; OutputError where that cannot be done."""

    def upload(self, name: str, source: Path) -> None:
        """Write what the local file `source` holds, likewise, in pieces where the storage takes them."""

    def sweep(self) -> None:
        """Remove what killed writers left behind an hour ago or longer."""


def open_folder(name: str) -> Folder:
    """Return the output folder called `name`, a path or a URL.

    Raises:
        OutputError: a URL of no known storage, or of one that cannot be reached.

    """
    if is_url(name):
        with _said(name, "cannot reach"):
            filesystem, path = locate(name)
        if filesystem.type_name != "local":
            return RemoteFolder(name.rstrip("/"), filesystem, path.rstrip("/"))
        name = path
    return LocalFolder(Path(name))


class LocalFolder:
    """A folder of this machine, or of a disk that several share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        """Return file names; see `Folder`."""
        if self._path.exists() and not self._path.is_dir():
            raise OutputError(f"{self._path} is a file; expected a folder for the shards, choose another --out")
        return sorted(path.name for path in self._path.iterdir()) if self._path.is_dir() else []

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return (self._path / name).read_bytes()

    def open(self, name: str) -> Any:
        """Open a file for pyarrow."""
        return arrow().OSFile(os.fsencode(self._path / name))

    def write(self, name: str, content: memoryview | bytes) -> None:
        """Write a file; see `Folder`."""
        with self._staged(name) as stream:
            stream.write(content)

    def upload(self, name: str, source: Path) -> None:
        """Copy a file in; see `Folder`."""
        with self._staged(name) as stream, source.open("rb") as pieces:
            shutil.copyfileobj(pieces, stream, _PIECE)

    def sweep(self) -> None:
        """Remove hidden partial files."""
        for path in self._path.rglob(f".*{_PARTIAL}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()

    @contextlib.contextmanager
    def _staged(self, name: str) -> Iterator[BinaryIO]:
        """Write beside the place, flush to disk, rename."""
        target = self._path / name
        stage = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_PARTIAL}")
        with _said(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with stage.open("xb") as stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                stage.replace(target)
            except BaseException:
                stage.unlink(missing_ok=True)
                raise


class RemoteFolder:
    """A folder of a file system of pyarrow or fsspec: in an object store, an object appears when it is complete."""

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        self._url, self._filesystem, self._path = url, filesystem, path
        self._is_object_store = url.partition("://")[0] in _OBJECT_STORES
        self._fsspec = filesystem.handler.fs if isinstance(filesystem, arrow().fs.PyFileSystem) else None

    def names(self) -> list[str]:
        """Return file names; see `Folder`."""
        selector = arrow().fs.FileSelector(self._path, allow_not_found=True)
        with _said(self._url, "cannot list"):
            return sorted(info.base_name for info in self._filesystem.get_file_info(selector))

    def read(self, name: str) -> bytes:
        """Return an object's content."""
        with self._filesystem.open_input_stream(f"{self._path}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def open(self, name: str) -> Any:
        """Open an object for pyarrow."""
        return self._filesystem.open_input_file(f"{self._path}/{name}")

    def write(self, name: str, content: memoryview | bytes) -> None:
        """Put one object; see `Folder`."""
        with self._staged(name) as place:
            if self._fsspec is not None:
                self._fsspec.pipe_file(place, bytes(content))  # closing a stream of fsspec would keep half of it
                return
            with self._filesystem.open_output_stream(place) as stream:
                stream.write(content)

    def upload(self, name: str, source: Path) -> None:
        """Put a file; see `Folder`."""
        with self._staged(name) as place:
            if self._fsspec is not None:
                self._fsspec.put_file(str(source), place)
                return
            with self._filesystem.open_output_stream(place) as stream, source.open("rb") as pieces:
                shutil.copyfileobj(pieces, stream, _PIECE)

    def sweep(self) -> None:
        """Remove hidden partial files, of which an object store has none."""
        if self._is_object_store:
            return
        with _said(self._url):
            for info in self._filesystem.get_file_info(arrow().fs.FileSelector(self._path, recursive=True)):
                partial = info.base_name.startswith(".") and info.base_name.endswith(_PARTIAL)
                if partial and info.mtime and time.time() - info.mtime.timestamp() > _STALE_S:
                    self._filesystem.delete_file(info.path)

    @contextlib.contextmanager
    def _staged(self, name: str) -> Iterator[str]:
        """Yield where to put an object; where there are files instead, that is beside the place, and is renamed."""
        place = f"{self._path}/{name}"
        folder, _, base = place.rpartition("/")
        stage = place if self._is_object_store else f"{folder}/.{base}.{uuid.uuid4().hex}{_PARTIAL}"
        with _said(f"{self._url}/{name}"):
            try:
                if stage != place:
                    self._filesystem.create_dir(folder, recursive=True)
                yield stage
                if stage != place:
                    self._filesystem.move(stage, place)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._filesystem.delete_file(stage)
                raise


@contextlib.contextmanager
def _said(target: object, doing: str = "cannot write") -> Iterator[None]:
    try:
        yield
    except (OSError, NotImplementedError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise OutputError(f"{doing} {target}: {reason}") from error
