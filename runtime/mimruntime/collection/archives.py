"""Read images of a zip or tar, local or by URL: count them, then read them one by one; nothing is unpacked to disk."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from mimruntime.collection.access import Access, RefusedError
from mimruntime.collection.sources import open_source
from mimruntime.collection.urls import is_url
from mimruntime.errors import ImageError
from mimruntime.image_names import PassedOver, is_image_name
from mimruntime.image_paths import as_text, open_regular

MOST_MEMBERS = 1_000_000
_MOST_EXPANSION = 100
"""Images are already compressed, so a tar that expands more than this contains something else."""
_LONGEST_NAME = 4096
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_PACKINGS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
    OSError,
)

Member = tuple[str, Callable[[], bytes]]
"""A name in an archive, and a function that reads it; call it before the next member is requested."""


def is_archive(name: str) -> bool:
    """Return whether a path or URL is a zip or tar by its name."""
    return name.lower().endswith((".zip", *_TARS))


def count_images(source: str, access: Access, passed: PassedOver) -> int:
    """Return the number of members that are images by their names; count the others in `passed`.

    Raises:
        ImageError: the archive is missing or damaged, has too many members, or expands too much for images.

    """
    with _opened(source, access) as members:
        count = 0
        for name, _ in members:
            if is_image_name(name):
                count += 1
            elif not _is_hidden(name):
                passed.add(name)
        return count


def read_images_of(source: str, start: int, stop: int, access: Access) -> Iterator[tuple[str, bytes | ImageError]]:
    """Yield images `start` to `stop` of an archive: the name ARCHIVE/NAME, and the bytes or the error.

    Raises:
        ImageError: as in `count_images`.

    """
    with _opened(source, access) as members:
        images = (member for member in members if is_image_name(member[0]))
        for index, (name, read) in enumerate(images):
            if index >= stop:
                return
            if index >= start:
                yield f"{as_text(source)}/{as_text(name)}", _content(read)


def _content(read: Callable[[], bytes]) -> bytes | ImageError:
    try:
        return read()
    except RefusedError as error:
        return ImageError(str(error))
    except _DAMAGE as error:
        return ImageError(f"cannot be read ({_reason(error)})")


@contextlib.contextmanager
def _opened(source: str, access: Access) -> Iterator[Iterator[Member]]:
    """Open an archive and yield its regular, visible files: of a zip sorted by name, of a tar in stored order."""
    try:
        with _file(source, access) as stream:
            listed = _members_of_zip if source.lower().endswith(".zip") else _members_of_tar
            yield _bounded(listed(stream, access))
    except ImageError as error:
        raise ImageError(f"{source}: {error}") from error
    except _DAMAGE as error:
        raise ImageError(f"{source}: archive cannot be read ({_reason(error)})") from error


def _bounded(members: Iterator[Member]) -> Iterator[Member]:
    for count, (name, read) in enumerate(members):
        if count >= MOST_MEMBERS:
            raise ImageError(f"has more than {MOST_MEMBERS:,} members; divide it into several archives")
        if len(name) <= _LONGEST_NAME and not _is_hidden(name):
            yield name, read


def _file(source: str, access: Access) -> Any:
    if not is_url(source):
        return open_regular(source)
    filesystem, path = open_source(source, access)
    return filesystem.open_input_file(path)


def _members_of_zip(stream: IO[bytes], access: Access) -> Iterator[Member]:
    with zipfile.ZipFile(stream) as archive:
        members = sorted((one for one in archive.infolist() if not one.is_dir()), key=lambda one: one.filename)
        if sum(one.compress_size for one in members) > stream.seek(0, 2):
            raise ImageError("has members of more bytes than the file; they overlap")
        for one in members:
            yield one.filename, lambda one=one: _take(archive.open(one), access)  # type: ignore[misc]


def _members_of_tar(stream: IO[bytes], access: Access) -> Iterator[Member]:
    total = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(6)
    stream.seek(0)
    unpack = next((packing for magic, packing in _PACKINGS.items() if head.startswith(magic)), None)
    most = total if unpack is None else _MOST_EXPANSION * total + access.max_bytes
    content: Any = _Bounded(unpack(stream) if unpack else stream, most, access)
    with tarfile.open(fileobj=content, mode="r:") as archive:
        while (one := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # it would keep a kilobyte for each
            if one.isreg():
                yield one.name, lambda one=one: _take(archive.extractfile(one), access)  # type: ignore[misc]


def _take(stream: Any, access: Access) -> bytes:
    """Read a member; its declared size is not trusted."""
    with stream:
        content: bytes = stream.read(access.max_bytes + 1)
    access.check_size(len(content))
    return content


class _Bounded(io.RawIOBase):
    """A stream that limits one read to the size of an object, and positions to `most`."""

    def __init__(self, stream: Any, most: int, access: Access) -> None:
        self._stream, self._most, self._access = stream, most, access

    def read(self, size: int = -1) -> bytes:
        wanted = self._access.max_bytes + 1 if size < 0 else size
        if wanted > self._access.max_bytes + 1:
            raise ImageError(f"has a header of {wanted:,} bytes, as no archive of images has")
        content: bytes = self._stream.read(wanted)
        return content

    def seek(self, place: int, whence: int = 0) -> int:
        if whence == 0 and place > self._most:
            raise ImageError(f"grows to more than {self._most:,} bytes, as no images do; unpack it first")
        moved: int = self._stream.seek(place, whence)
        return moved

    def tell(self) -> int:
        place: int = self._stream.tell()
        return place


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/") if part != ".")


def _reason(error: BaseException) -> str:
    if isinstance(error, zipfile.BadZipFile) and isinstance(error.__context__, OSError):
        error = error.__context__  # zipfile takes a file whose end cannot be read for no zip
    return str(error).split("\n")[0] or type(error).__name__
