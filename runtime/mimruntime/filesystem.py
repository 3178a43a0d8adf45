"""File system functions missing in pathlib: file locks, fsync, atomic exchange of two folders."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_AT_FDCWD, _EXCHANGE = -100, 2


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Lock a file or folder during the block; yield whether it is locked, because not all systems support locks.

    Args:
        path: an existing file or folder.
        shared: take a shared lock instead of an exclusive one.
        wait: wait until the lock is free; otherwise yield False at once.

    Raises:
        OSError: the path cannot be opened.

    """
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows
    except ImportError:
        yield False
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder may be writable but not readable
        yield False
        return
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Write `folder` and everything in it to the disk (fsync).

    Raises:
        OSError: a file or folder could not be written.

    """
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def sync(path: Path) -> None:
    """Write a file's content, or a folder's entries, to the disk (fsync).

    Raises:
        OSError: it could not be written.

    """
    if path.is_dir() and (os.name != "posix" or not os.access(path, os.R_OK)):  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {
            errno.EINVAL,
            errno.ENOTSUP,
        }:  # some network file systems do not support fsync on folders
            raise
    finally:
        os.close(handle)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two files or folders atomically; return False if the system or file system does not support it.

    Raises:
        OSError: a path does not exist or is not writable.

    """
    if os.name != "posix":
        return False
    libc: Any = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):  # Linux
        failed = libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _EXCHANGE)
    elif hasattr(libc, "renamex_np"):  # macOS
        failed = libc.renamex_np(*paths, _EXCHANGE)
    else:
        return False
    code = ctypes.get_errno() if failed else 0
    if code and code not in _NO_EXCHANGE:
        raise OSError(code, os.strerror(code), str(other))
    return not failed
