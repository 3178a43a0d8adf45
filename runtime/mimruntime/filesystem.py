"""What the operating system has beyond pathlib: locks, waiting for the disk, swapping two folders."""

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
    """Lock a file or folder until the block ends; yield whether it was: not every system or disk has such locks.

    Args:
        path: exists.
        shared: let others in that ask for a shared lock too.
        wait: for others to let it go; else, yield False at once.

    Raises:
        OSError: it cannot be opened.

    """
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows
    except ImportError:
        yield False
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder may be written to and not read
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
    """Sync every file and folder below `folder`, and itself.

    Raises:
        OSError: one of them could not be written to the disk.

    """
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Raises:
        OSError: it could not be written.

    """
    if path.is_dir() and (os.name != "posix" or not os.access(path, os.R_OK)):  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network disks sync no folders
            raise
    finally:
        os.close(handle)


def exchange(one: Path, other: Path) -> bool:
    """Swap two files or folders in one step; return False where the system or the disk cannot.

    Raises:
        OSError: one of them is not there, or not to be written.

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
