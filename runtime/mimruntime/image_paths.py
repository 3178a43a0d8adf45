"""Expand files, folders and patterns to one ordered list of image paths."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from mimruntime.errors import ImageError
from mimruntime.image_names import EXTENSIONS, PassedOver, is_image_name

_SMALL = 1 << 20
"""Bytes of a file that is read at once."""


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the image paths that `paths` stand for, in the given order; those of one folder are sorted by name.

    A file is accepted with any name. A folder is searched recursively for names with one of `EXTENSIONS`. Hidden files and
    folders are skipped, links are followed, and no folder is visited twice. The other files are counted in one log line.
    A name that does not exist and contains `*`, `?` or `[` is a pattern; `**` matches folders recursively. Its matches are
    handled like given paths, but an image in a matched folder is returned only once.

    Raises:
        ImageError: a path does not exist, a pattern matches nothing, a folder is unreadable, or there are no images.

    """
    named = [str(path) for path in paths]
    passed = PassedOver()
    found = list(iter_images(named, passed))
    if not found:
        raise ImageError(nothing_found(", ".join(named) or "an empty list", passed))
    passed.log()
    return found


def iter_images(names: Iterable[str], passed: PassedOver) -> Iterator[Path]:
    """Yield the paths of `find_images`, listing one folder at a time; finding none is not an error."""
    for name in names:
        yield from _expand(name, passed)


def nothing_found(where: str, passed: PassedOver) -> str:
    """Return the error text for `where` without images: the known extensions and the skipped files."""
    return f"no images in {where}; looked for {', '.join(sorted(EXTENSIONS))}" + (f"; {passed}" if str(passed) else "")


def as_text(path: str | Path) -> str:
    r"""Return a path, or a text that contains one, as valid UTF-8; invalid bytes are escaped as `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def open_small(path: str | Path) -> BinaryIO:
    """Open a regular file as `open_regular` does, and raise the same; a small file is read at once.

    Every read gives up the interpreter's lock, and may wait for another thread before it has it again.
    """
    with _regular(path) as (handle, length):
        if 0 < length <= _SMALL and len(data := os.read(handle, length)) == length:
            os.close(handle)
            return io.BytesIO(data)
        os.lseek(handle, 0, os.SEEK_SET)  # a length of 0 may be unknown, and a remote file may come in parts
        return os.fdopen(handle, "rb")


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. Pipes and devices are rejected because reading them may never end.

    Raises:
        ImageError: the path is a pipe, a socket or a device.
        OSError: the file cannot be opened.

    """
    with _regular(path) as (handle, _):
        return os.fdopen(handle, "rb")


@contextlib.contextmanager
def _regular(path: str | Path) -> Iterator[tuple[int, int]]:
    """Yield the descriptor of a regular file and its length; an error within the context closes it."""
    check_regular(path)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(handle)
        _check_kind(status.st_mode)  # check again: it may have been replaced since
        yield handle, status.st_size
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: str | Path) -> None:
    """Raise ImageError (without the path) or OSError if `open_regular` would reject the path; do not open it."""
    _check_kind(os.stat(path).st_mode)  # noqa: PTH116 - a path of bytes or text


def _check_kind(mode: int) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a folder does not block; reading it fails later
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise ImageError(f"is {kinds.get(stat.S_IFMT(mode), 'a device')}; expected a regular file")


def _expand(name: str, passed: PassedOver) -> Iterator[Path]:
    if os.path.lexists(name):
        yield from _expand_existing(Path(name), set(), passed)
        return
    matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []  # noqa: PTH207 - takes absolute patterns
    if not matches:
        raise ImageError(f"{name}: no such file or folder")
    walked: set[str] = set()
    for match in map(Path, matches):
        # A pattern like `photos/**` matches a folder and also the files in it.
        if match.is_dir() or not (is_image_name(match.name) and os.path.realpath(match.parent) in walked):
            yield from _expand_existing(match, walked, passed)


def _expand_existing(path: Path, walked: set[str], passed: PassedOver) -> Iterator[Path]:
    if path.is_dir():
        yield from _walk(path, walked, passed)
    else:
        yield path


def _walk(folder: Path, seen: set[str], passed: PassedOver) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for name in sorted(_names(folder)):
        path = folder / name
        if path.is_dir():
            yield from _walk(path, seen, passed)
        elif not is_image_name(name):
            passed.add(name)
        elif not _is_special(path):
            yield path


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ImageError(f"{error.filename}: folder cannot be read ({error.strerror})") from error


def _is_special(path: Path) -> bool:
    """Return whether `path` is a pipe, socket or device, whose opening could block. Broken links are kept and reported."""
    return path.exists() and not path.is_file()
