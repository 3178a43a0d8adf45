"""Files and folders that appear whole or not at all: written beside their place, synced to the disk, then renamed.

What is being written is hidden, called `.NAME.<8 letters>.partial`, and locked by its writer. So a later writer can tell
what a killed one left, and removes that alone.
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
    """Yield a stream whose content is the file at `path` when the block ends well; otherwise `path` stays as it was.

    Args:
        path: of the file.
        mode: who may read and write it, less what the umask takes.

    Raises:
        OutputError: it cannot be written.

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
    """Make `content` the file at `path`, whole or not at all; see `staged_file`.

    Raises:
        OutputError: it cannot be written.

    """
    with staged_file(path, mode) as stream:
        stream.write(content)


@contextlib.contextmanager
def staged_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new hidden folder in `parent`, to be filled and given to `place` or `replace`; what is left of it is removed.

    Args:
        parent: exists, on the disk of the folder's place.
        name: of the folder's place, for the eye and for `sweep`.

    Raises:
        OSError: it cannot be made.

    """
    stage = _hidden(parent, name)
    try:
        with _held(stage, stage.mkdir):
            yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class FolderState:
    """What stood at a place when it was looked at, so that it can be told later whether it still does.

    Attributes:
        folder: device and inode.
        mark: content of the file that shows whose folder it is.

    """

    folder: tuple[int, int]
    mark: bytes


def look(target: Path, mark: str) -> FolderState | None:
    """Return what stands at `target`; None where there is nothing, or an empty folder.

    Args:
        target: where a folder is to be.
        mark: name of the file by which a folder is known for one of this program's, which may be replaced.

    Raises:
        OutputError: a file or another folder is there.

    """
    try:
        content = (target / mark).read_bytes()
        stat = target.stat()
    except OSError as error:
        if not os.path.lexists(target) or _is_empty_folder(target):
            return None
        raise OutputError(f"{target} exists and holds no {mark}; it is left alone, choose another place") from error
    return FolderState((stat.st_dev, stat.st_ino), content)


def place(stage: Path, target: Path) -> None:
    """Sync `stage` and rename it to `target`, where nothing or an empty folder is: the rename itself is what finds out.

    Raises:
        OutputError: something is there.
        OSError: it cannot be renamed.

    """
    sync_tree(stage)
    _rename_new(stage, target)
    sync(target.parent)


def replace(stage: Path, target: Path, mark: str, seen: FolderState | None = None) -> None:
    """Sync `stage` and put it in the place of the folder at `target`, in one step where the system can.

    Args:
        stage: whole.
        target: a folder of this program, or nothing.
        mark: see `look`.
        seen: what may be replaced and nothing else; None: whatever has the mark.

    Raises:
        OutputError: something else is there.
        OSError: it cannot be renamed.

    """
    sync_tree(stage)
    with locked(target.parent):  # of two that replace one folder, each must see what the other left
        now = look(target, mark)
        if now is not None and seen is not None and now != seen:
            raise OutputError(
                f"{target} was replaced by another while it was being written; it is left alone, try again"
            )
        if now is None:
            _rename_new(stage, target)
        elif exchange(stage, target):
            if _look_again(stage, mark) != now:  # somebody who takes no lock came between
                exchange(stage, target)
                raise OutputError(f"{target} changed at the last moment; it is left alone, try again")
        else:
            _exchange_in_steps(stage, target, mark, now)
        sync(target.parent)
    shutil.rmtree(stage, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a folder of this program: out of sight first, for half of it under its name would be a damaged one.

    Raises:
        OSError: it cannot be renamed.

    """
    shutil.rmtree(folder.rename(_hidden(folder.parent, folder.name)), ignore_errors=True)


def sync_and_rename(stage: Path, target: Path) -> None:
    """Make a file or folder that was completed under another name last, and give it its own.

    Raises:
        OSError: it cannot be synced or renamed.

    """
    sync_tree(stage) if stage.is_dir() else sync(stage)
    stage.replace(target)
    sync(target.parent)


def sweep(parent: Path, name: str | None = None, mark: str = "") -> None:
    """Remove what killed writers left in `parent`, and bring back a folder that one of them had just set aside.

    Args:
        parent: a folder.
        name: only what was to become this; None: whatever it was to become.
        mark: see `look`; a folder that was set aside is removed only if it holds this.

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
                f"{target} appeared while it was being written; it is left alone, choose another place or try again"
            ) from error
        raise


def _exchange_in_steps(stage: Path, target: Path, mark: str, now: FolderState) -> None:
    """Do what `exchange` does by three renames; killed between them, `sweep` brings the old folder back."""
    aside = _hidden(target.parent, target.name).with_suffix(_ASIDE)
    try:
        target.rename(aside)
        if _look_again(aside, mark) != now:
            raise OutputError(f"{target} changed at the last moment; it is left alone, try again")
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
    """Make what is to be written, and lock it until the block ends, or its writer does."""
    with contextlib.ExitStack() as stack:
        with locked(stage.parent, shared=True):  # or a sweep could come between the two
            made = make()
            # Shared, so that one may write into a folder that is being written.
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
