"""A folder of this machine, or of a disk that several share."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from mimruntime.collection.folder import PARTIAL, PIECE, STALE_S, partial_name, said
from mimruntime.collection.urls import arrow
from mimruntime.errors import OutputError

LOCK = "_job/lock"
"""Locked while a process writes shards; holds that process's number and machine."""


class LocalFolder:
    """See `mimruntime.collection.folder.Folder`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        """Return file names."""
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
        """Write a file."""
        with self._staged(name) as stream:
            stream.write(content)

    def upload(self, name: str, source: Path) -> None:
        """Copy a file in."""
        with self._staged(name) as stream, source.open("rb") as pieces:
            shutil.copyfileobj(pieces, stream, PIECE)

    def create(self, name: str, content: bytes) -> bool:
        """Write a new file: linked into place, which fails where the name is taken, on NFS as well."""
        target = self._path / name
        stage = target.with_name(partial_name(target.name))
        with said(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_synced(stage, content)
                if not _link(stage, target):
                    _write_synced(target, content)
                _sync_folder(target.parent)
            except FileExistsError:
                return False
            finally:
                stage.unlink(missing_ok=True)
        return True

    def remove(self, name: str) -> None:
        """Remove a file."""
        with said(self._path / name, "cannot remove"):
            (self._path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Lock the folder. The system unlocks it when the process ends, however that ends."""
        place = self._path / LOCK
        with said(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            stream = place.open("a+")
        with stream:
            if not _lock(stream):
                stream.seek(0)
                raise OutputError(
                    f"{self._path}: another run is writing to it ({stream.read() or 'an unknown process'}); wait until"
                    " it has ended, or choose another --out"
                )
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}")
            stream.flush()
            yield

    def sweep(self) -> None:
        """Remove hidden partial files."""
        for path in self._path.rglob(f".*{PARTIAL}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()

    @contextlib.contextmanager
    def _staged(self, name: str) -> Iterator[BinaryIO]:
        """Write beside the place, flush to disk, rename, flush the name."""
        target = self._path / name
        stage = target.with_name(partial_name(target.name))
        with said(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with stage.open("xb") as stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                stage.replace(target)
                _sync_folder(target.parent)
            except BaseException:
                stage.unlink(missing_ok=True)
                raise


def _lock(stream: IO[str]) -> bool:
    """Lock an open file; False where another process has locked it. Without locks, the record alone keeps jobs apart."""
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return True
    try:
        # Of the process, not of the open file: a process that was forked off and lives on does not hold it.
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a disk that has none
        pass
    return True


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name that nothing has; False on a disk that knows no such links."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        return False
    return True


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Keep a new name through a power cut, where the system lets a folder be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
