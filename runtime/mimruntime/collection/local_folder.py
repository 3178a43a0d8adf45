"""An output folder on a local or shared disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mimruntime.collection.folder import PIECE, partial_name, said
from mimruntime.collection.urls import arrow
from mimruntime.errors import OutputError
from mimruntime.filesystem import sync
from mimruntime.writing import staged_file, sweep, write_file

LOCK = "_job/lock"
"""The file that is locked while a process writes shards; it contains the process id and the machine."""


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
        write_file(self._place(name), content)

    def upload(self, name: str, source: Path) -> None:
        """Copy a file in."""
        with staged_file(self._place(name)) as stream, source.open("rb") as pieces:
            shutil.copyfileobj(pieces, stream, PIECE)

    def create(self, name: str, content: bytes) -> bool:
        """Write a new file by a hard link, which fails if the name exists, also on NFS."""
        target = self._place(name)
        stage = target.with_name(partial_name(target.name))
        write_file(stage, content)
        with said(target):
            try:
                if not _link(stage, target):
                    _write_new(target, content)
                sync(target.parent)
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
        """Lock the folder. The system unlocks it when the process ends for any reason."""
        place = self._place(LOCK)
        with said(place):
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
        """Remove hidden partial files whose writer has ended."""
        for folder in (self._path, (self._path / LOCK).parent):
            sweep(folder)

    def _place(self, name: str) -> Path:
        """Return the path of a file, and create its folder."""
        place = self._path / name
        with said(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        return place


def _lock(stream: IO[str]) -> bool:
    """Lock an open file; False if another process has locked it. On a disk without locks, only the record separates jobs."""
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return True
    try:
        # The lock belongs to the process, not to the open file: a forked process that lives on does not hold it.
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a disk without locks
        pass
    return True


def _link(source: Path, target: Path) -> bool:
    """Give a file a second, new name by a hard link; False on a disk without hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        return False
    return True


def _write_new(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
