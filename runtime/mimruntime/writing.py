"""Write files and folders atomically: under a hidden name next to the target, synced to the disk, then renamed.

The hidden name is `.NAME.<8 hex digits>.partial`, and the writer holds a lock on it. So a later writer can recognise and
remove the remains of a killed one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from mimruntime.errors import OutputError
from mimruntime.filesystem import exchange, locked, sync, sync_tree

_PARTIAL, _ASIDE = ".partial", ".old"
_OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)
Made = TypeVar("Made")


@contextlib.contextmanager
def staged_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a stream that becomes the file at `path` if the block succeeds; otherwise `path` does not change.

    Args:
        path: the file to write.
        mode: permission bits, before the umask.

    Raises:
        OutputError: the file cannot be written.

    """
    stage = _hidden(path.parent, path.name)
    with _said(path):
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            with _held(stage, lambda: os.fdopen(os.open(stage, flags, mode), "wb")) as stream, stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                stream.close()
                stage.replace(path)
            sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                stage.unlink()
            raise


def write_file(path: Path, content: bytes | memoryview, mode: int = 0o666) -> None:
    """Write `content` to the file at `path` atomically; see `staged_file`.

    Raises:
        OutputError: the file cannot be written.

    """
    with staged_file(path, mode) as stream:
        stream.write(content)


@contextlib.contextmanager
def staged_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new hidden folder in `parent` for the block to fill and pass to `place` or `replace`; then remove the rest.

    Args:
        parent: existing folder on the file system of the target.
        name: name of the target; part of the hidden name, and used by `sweep`.

    Raises:
        OSError: the folder cannot be created.

    """
    stage = _hidden(parent, name)
    try:
        with _held(stage, stage.mkdir):
            yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class FolderState:
    """Identity of a folder at one moment, to detect later that it was replaced.

    Attributes:
        folder: device and inode.
        mark: content of its mark file; see `look`.

    """

    folder: tuple[int, int]
    mark: bytes


def look(target: Path, mark: str) -> FolderState | None:
    """Return the state of the folder at `target`; None if nothing or an empty folder is there.

    Args:
        target: path of the folder.
        mark: name of a file that identifies folders of this program; only these may be replaced.

    Raises:
        OutputError: `target` is a file, or a folder without the mark file.

    """
    try:
        content = (target / mark).read_bytes()
        stat = target.stat()
    except OSError as error:
        if not os.path.lexists(target) or _is_empty_folder(target):
            return None
        raise OutputError(
            f"{target} exists and contains no {mark}, so it is not overwritten; choose another path"
        ) from error
    return FolderState((stat.st_dev, stat.st_ino), content)


def place(stage: Path, target: Path) -> None:
    """Sync `stage` and rename it to `target`; the rename fails unless nothing or an empty folder is there.

    Raises:
        OutputError: `target` exists.
        OSError: `stage` cannot be renamed.

    """
    sync_tree(stage)
    _rename_new(stage, target)
    sync(target.parent)


def replace(stage: Path, target: Path, mark: str, seen: FolderState | None = None) -> None:
    """Sync `stage` and replace the folder at `target` by it, atomically if the system supports it.

    Args:
        stage: the complete new folder.
        target: a folder of this program, or a path that does not exist.
        mark: see `look`.
        seen: replace only a folder in this state; None replaces any folder with the mark file.

    Raises:
        OutputError: another folder or a file is at `target`.
        OSError: a folder cannot be renamed.

    """
    sync_tree(stage)
    with locked(target.parent):  # two processes that replace the same folder must see each other's result
        now = look(target, mark)
        if now is not None and seen is not None and now != seen:
            raise OutputError(
                f"{target} was replaced by another process in the meantime and is not overwritten; try again"
            )
        if now is None:
            _rename_new(stage, target)
        elif exchange(stage, target):
            if _look_again(stage, mark) != now:  # a process without the lock interfered
                exchange(stage, target)
                raise OutputError(f"{target} changed at the last moment and is not overwritten; try again")
        else:
            _exchange_in_steps(stage, target, mark, now)
        sync(target.parent)
    shutil.rmtree(stage, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a folder of this program. Rename it to a hidden name first, so that a crash leaves no partial folder.

    Raises:
        OSError: the folder cannot be renamed.

    """
    shutil.rmtree(folder.rename(_hidden(folder.parent, folder.name)), ignore_errors=True)


def sync_and_rename(stage: Path, target: Path) -> None:
    """Sync a complete file or folder to the disk and rename it to `target`.

    Raises:
        OSError: it cannot be synced or renamed.

    """
    sync_tree(stage) if stage.is_dir() else sync(stage)
    stage.replace(target)
    sync(target.parent)


def sweep(parent: Path, name: str | None = None, mark: str = "") -> None:
    """Remove the remains of killed writers in `parent`, and restore a folder that one had renamed before replacing it.

    Args:
        parent: a folder.
        name: handle only remains of this target; None handles all.
        mark: see `look`; a renamed old folder is removed only if it contains this file.

    """
    called = r"(?:(.*)\.)?" if name is None else rf"({re.escape(name)})\."
    pattern = re.compile(rf"\.{called}[0-9a-z_]+({_PARTIAL}|{_ASIDE})")
    with contextlib.suppress(OSError), locked(parent) as alone:
        found = [(path, match) for path in parent.iterdir() if alone and (match := pattern.fullmatch(path.name))]
        for path, match in found:
            if match[2] == _PARTIAL:
                _remove_if_dead(path)
            elif match[1] and not os.path.lexists(parent / match[1]):
                path.rename(parent / match[1])
            elif mark and (path / mark).is_file():
                shutil.rmtree(path, ignore_errors=True)


def _hidden(parent: Path, name: str) -> Path:
    return parent / f".{name}.{secrets.token_hex(4)}{_PARTIAL}"


def _rename_new(stage: Path, target: Path) -> None:
    try:
        stage.rename(target)
    except OSError as error:
        if error.errno in _OCCUPIED:
            raise OutputError(
                f"{target} was created by another process in the meantime and is not overwritten; choose another path"
            ) from error
        raise


def _exchange_in_steps(stage: Path, target: Path, mark: str, now: FolderState) -> None:
    """Exchange two folders with three renames; if killed in between, `sweep` restores the old folder."""
    aside = _hidden(target.parent, target.name).with_suffix(_ASIDE)
    try:
        target.rename(aside)
        if _look_again(aside, mark) != now:
            raise OutputError(f"{target} changed at the last moment and is not overwritten; try again")
        stage.rename(target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            aside.rename(target)
        raise
    aside.rename(stage)


def _look_again(folder: Path, mark: str) -> FolderState | None:
    try:
        return look(folder, mark)
    except OutputError:
        return None


@contextlib.contextmanager
def _held(stage: Path, make: Callable[[], Made]) -> Iterator[Made]:
    """Create the hidden file or folder and lock it until the block or the process ends."""
    with contextlib.ExitStack() as stack:
        with locked(stage.parent, shared=True):  # prevents a sweep between creating and locking
            made = make()
            # Shared, so that other writers can stage files inside a staged folder.
            stack.enter_context(locked(stage, shared=True))
        yield made


def _remove_if_dead(stage: Path) -> None:
    with contextlib.suppress(OSError), locked(stage, wait=False) as alone:
        if alone and stage.is_dir():
            shutil.rmtree(stage, ignore_errors=True)
        elif alone:
            stage.unlink()


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
