"""An output folder in a file system of pyarrow or fsspec, usually an object store."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mimruntime.collection.folder import PARTIAL, PIECE, STALE_S, partial_name, said
from mimruntime.collection.urls import arrow

_OBJECT_STORES = frozenset({"abfs", "abfss", "az", "gcs", "gs", "memory", "oss", "r2", "s3", "s3a"})
_ANNOUNCED = ".announced"


class RemoteFolder:
    """See `mimruntime.collection.folder.Folder`. In an object store, an object appears when it is complete."""

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        self._url, self._filesystem, self._path = url, filesystem, path
        self._is_object_store = url.partition("://")[0] in _OBJECT_STORES
        self._fsspec = filesystem.handler.fs if isinstance(filesystem, arrow().fs.PyFileSystem) else None

    def names(self) -> list[str]:
        """Return file names."""
        selector = arrow().fs.FileSelector(self._path, allow_not_found=True)
        with said(self._url, "cannot list"):
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
        """Put one object."""
        with self._staged(name) as place:
            if self._fsspec is not None:
                self._fsspec.pipe_file(place, bytes(content))  # closing an fsspec stream would keep a partial object
                return
            with self._filesystem.open_output_stream(place) as stream:
                stream.write(content)

    def upload(self, name: str, source: Path) -> None:
        """Put a file."""
        with self._staged(name) as place:
            if self._fsspec is not None:
                self._fsspec.put_file(str(source), place)
                return
            with self._filesystem.open_output_stream(place) as stream, source.open("rb") as pieces:
                shutil.copyfileobj(pieces, stream, PIECE)

    def create(self, name: str, content: bytes) -> bool:
        """Put a new object, on storage whose listings are consistent.

        pyarrow has no conditional put. So each writer first puts an announcement beside the object, then lists the folder. It
        withdraws if it sees the object, or an announcement of another content. Of two writers, the one that lists last sees
        the other. An announcement an hour older than its own belongs to a writer that was killed between two requests.
        """
        parent, _, base = name.rpartition("/")
        kind = f"{base}.{hashlib.sha256(content).hexdigest()[:12]}."
        own = f"{kind}{uuid.uuid4().hex}{_ANNOUNCED}"
        self.write(f"{parent}/{own}", content)
        try:
            found = self._listed(parent)
            announced = [info for info in found.values() if info.base_name.endswith(_ANNOUNCED)]
            rivals = [info for info in announced if not info.base_name.startswith(kind)]
            if base in found or own not in found or not all(_is_dead(rival, found[own]) for rival in rivals):
                return False
            self.write(name, content)
        finally:
            self.remove(f"{parent}/{own}")
        for info in announced:  # the object replaces the announcements
            self.remove(f"{parent}/{info.base_name}")
        return True

    def remove(self, name: str) -> None:
        """Remove an object."""
        with said(f"{self._url}/{name}", "cannot remove"), contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._path}/{name}")

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: object storage has no locks. Two runs of one job write the same shards."""
        return contextlib.nullcontext()

    def sweep(self) -> None:
        """Remove hidden partial files; an object store has none."""
        if self._is_object_store:
            return
        with said(self._url):
            for info in self._filesystem.get_file_info(arrow().fs.FileSelector(self._path, recursive=True)):
                partial = info.base_name.startswith(".") and info.base_name.endswith(PARTIAL)
                if partial and info.mtime and time.time() - info.mtime.timestamp() > STALE_S:
                    self._filesystem.delete_file(info.path)

    def _listed(self, folder: str) -> dict[str, Any]:
        """Return the entries of a folder by name, listed anew and not from a cache."""
        if self._fsspec is not None:
            self._fsspec.invalidate_cache()
        place = f"{self._path}/{folder}"
        with said(f"{self._url}/{folder}", "cannot list"):
            return {info.base_name: info for info in self._filesystem.get_file_info(arrow().fs.FileSelector(place))}

    @contextlib.contextmanager
    def _staged(self, name: str) -> Iterator[str]:
        """Yield the path to write an object; on a file system this is a temporary file, which is then renamed."""
        place = f"{self._path}/{name}"
        folder, _, base = place.rpartition("/")
        stage = place if self._is_object_store else f"{folder}/{partial_name(base)}"
        with said(f"{self._url}/{name}"):
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


def _is_dead(other: Any, own: Any) -> bool:
    """Return whether an announcement is an hour older than ours, by the storage's clock."""
    if other.mtime is None or own.mtime is None:
        return False
    return bool((own.mtime - other.mtime).total_seconds() > STALE_S)
