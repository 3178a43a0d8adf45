"""Download published archives once: resume, check the digest, and rename the complete file."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mimeval.errors import DataError
from mimruntime.errors import OutputError
from mimruntime.writing import sync_and_rename

ATTEMPTS = 5
"""Number of consecutive connections without new bytes before giving up."""
PAUSE = 0.5
"""Seconds before the second attempt, twice that before the third, and so on."""
TIMEOUT = 60
"""Seconds without data after which a connection is closed."""
_CHUNK = 1 << 20

Progress = Callable[[int, int | None], None]
"""Called with the bytes downloaded and the total (None if unknown)."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A published file.

    Attributes:
        url: http or https URL.
        md5: digest stated by the publisher or by a common library; it detects damage, not manipulation.
        size: bytes, for messages.

    """

    url: str
    md5: str
    size: int

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[1]


def fetch(archive: Archive, cache: Path, progress: Progress = lambda here, total: None) -> Path:
    """Return the path of the archive; download it or the missing rest first.

    Raises:
        DataError: the download failed, or the digest is wrong.
        OutputError: the cache is not writable or the disk is full; a partial download is kept to resume.

    """
    file = cache / archive.name
    if file.exists():
        return file
    partial = file.with_name(f".{file.name}.partial")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(partial):
            if not file.exists():
                _complete(archive, partial, progress)
                sync_and_rename(partial, file)
    except urllib.error.URLError as error:
        raise _unreachable(archive, cache, error) from error
    except OSError as error:
        raise OutputError(f"{partial} cannot be written: {error.strerror or error}") from error
    return file


def unpacked(
    archive: Archive,
    cache: Path,
    progress: Progress = lambda here, total: None,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Path:
    """Return the folder with the content of an archive (.tar.gz, .tgz); unpack it on the first call.

    Args:
        archive: the archive to unpack.
        cache: folder of the archive and its unpacked content.
        progress: receives the progress of the download.
        wanted: returns whether to unpack a member, by name.

    Raises:
        DataError: the download failed, the digest is wrong, or the file is not an archive.
        OutputError: the cache is not writable or the disk is full.

    """
    folder = cache / archive.name.split(".")[0]
    if folder.is_dir():
        return folder
    file = fetch(archive, cache, progress)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        with _alone(cache / f".{folder.name}.lock"):
            if not folder.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
                with tarfile.open(file) as opened:
                    members = [member for member in opened if member.isdir() or wanted(member.name)]
                    opened.extractall(partial, members, filter="data")
                sync_and_rename(partial, folder)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{file} is not a readable archive ({error}); delete it to download it again") from error
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(f"{partial} cannot be written: {error.strerror or error}") from error
    return folder


def _complete(archive: Archive, partial: Path, progress: Progress) -> None:
    """Download the complete file and check it; if a resumed file is wrong, download it once more from the start."""
    resumed = partial.exists() and partial.stat().st_size > 0
    _download(archive, partial, progress)
    if _md5(partial) != archive.md5 and resumed:
        partial.write_bytes(b"")
        _download(archive, partial, progress)
    if (found := _md5(partial)) != archive.md5:
        partial.unlink()
        raise DataError(f"{archive.url} has md5 {found}, expected {archive.md5}; the wrong file was deleted")


def _download(archive: Archive, partial: Path, progress: Progress) -> None:
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            if _append(archive, partial, before, progress):
                return
            cause: Exception = urllib.error.URLError("the connection was cut")
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise
            cause = error
        except urllib.error.URLError as error:
            cause = error
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            cause = urllib.error.URLError(error)
        failures = 0 if partial.exists() and partial.stat().st_size > before else failures + 1
        if failures == ATTEMPTS:
            raise cause
        time.sleep(PAUSE * failures)


def _append(archive: Archive, partial: Path, start: int, progress: Progress) -> bool:
    """Download from byte `start` in one connection and append it; return whether the file is complete."""
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310 - of the table
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310 - likewise
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return True  # no bytes after `start`; the digest decides whether the file is complete
        raise
    with answer:
        # A server without support for ranges sends the whole file.
        start = start if answer.status == http.client.PARTIAL_CONTENT else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with partial.open("r+b" if partial.exists() else "w+b") as file:
            file.truncate(start)
            file.seek(start)
            for chunk in _chunks(answer):
                file.write(chunk)
                progress(file.tell(), total)
            return total is None or file.tell() == total


def _chunks(answer: Any) -> Iterator[bytes]:
    while chunk := answer.read1(_CHUNK):
        yield chunk


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unreachable(archive: Archive, cache: Path, error: urllib.error.URLError) -> DataError:
    reason = f"HTTP {error.code} {error.reason}" if isinstance(error, urllib.error.HTTPError) else str(error.reason)
    return DataError(
        f"{archive.url} cannot be fetched ({reason}); try again later, the download resumes, or put the file"
        f" ({archive.size / 1e6:.0f} MB, md5 {archive.md5}) into {cache}"
    )


@contextmanager
def _alone(file: Path) -> Iterator[IO[bytes]]:
    """Open and lock `file` during the block; wait while another process holds the lock."""
    with file.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield held
