"""Expand inputs (images, folders, patterns, lists, Parquet files, URLs) into entries of a work list."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mimruntime.collection.access import LOCAL_ONLY, Access, RefusedError, refusal
from mimruntime.collection.archives import count_images, is_archive
from mimruntime.collection.sources import open_source, open_stream
from mimruntime.collection.urls import arrow, is_url
from mimruntime.errors import ImageError, OptionError
from mimruntime.image_names import PassedOver, is_image_name
from mimruntime.image_paths import as_text, check_regular, iter_images, nothing_found

TABLE = ".parquet"
_STDIN = "-"
_MAGIC = re.compile(r"[*?\[]")
_IMAGE_COLUMNS = ("image", "bytes", "path")
_PATH_COLUMN = "path"
_LONGEST_LINE = 1 << 16
"""Largest length of a line of a list, in bytes."""
_BUFFER_BYTES = 1 << 20
"""Buffer in bytes per Parquet column; without it pyarrow reads the whole column of a row group."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An image file, or images `start` to `stop` of a Parquet file, zip or tar.

    Attributes:
        source: path or URL, as given.
        start: the first image; -1 for an image file.
        stop: one past the last image; -1 for an image file.

    """

    source: str
    start: int = -1
    stop: int = -1

    @property
    def is_range(self) -> bool:
        """Whether it is a range of images within a file."""
        return self.start >= 0

    @property
    def images(self) -> int:
        """Number of images."""
        return self.stop - self.start if self.is_range else 1


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a Parquet file; None takes the first of image, bytes, path for `image`, and path for `path`.

    Attributes:
        image: binary (an encoded file), text (a path or URL), or a struct of both, as Hugging Face's datasets have.
        path: the name of a row in the output; without this column, FILE#ROW.

    """

    image: str | None = None
    path: str | None = None

    def of(self, schema: Any, file: str) -> tuple[str, str | None]:
        """Return the column names for one file.

        Raises:
            OptionError: a column is missing, or no column can be chosen.

        """
        names = schema.names
        wanted = [self.image] if self.image else [name for name in _IMAGE_COLUMNS if name in names]
        for name in (*wanted[:1], self.path):
            if name is not None and name not in names:
                raise OptionError(f"{file} has no column '{name}', it has {', '.join(names)}")
        if not wanted or wanted[0] is None:
            raise OptionError(
                f"{file} has none of the columns {', '.join(_IMAGE_COLUMNS)}, it has {', '.join(names)};"
                " name the one that holds the images: --image-column"
            )
        path = self.path or (_PATH_COLUMN if _PATH_COLUMN in names else None)
        return wanted[0], None if path == wanted[0] else path


def find_entries(names: Iterable[str], columns: Columns, access: Access = LOCAL_ONLY) -> Iterator[Entry]:
    """Yield the entries of `names` in the given order, those of a folder sorted by name.

    A local path, folder or pattern is expanded as in `mimruntime.image_paths.find_images`. A URL is expanded in the same
    way in its file system, with a pattern's images sorted by name.
    `@FILE` is a list with one path or URL a line; `-` is such a list on standard input. A missing image of a list is
    reported when it is read. A `.parquet` file stands for its rows, a zip or tar for the images in it. The log counts
    other files of a folder or archive in one line.

    Raises:
        ImageError: an input is missing, or there are no images.
        OptionError: a Parquet file lacks the columns, or a list has a name that `access` does not allow.

    """
    passed, found = PassedOver(), False
    for name in names:
        for entry in _expand(name, columns, access, passed):
            found = True
            yield entry
    passed.log()
    if not found:
        raise ImageError("the inputs hold no images")


def open_table(source: str, access: Access) -> Any:
    """Open a Parquet file, by path or URL, as a `pyarrow.parquet.ParquetFile`.

    Columns of bytes and texts are read as dictionaries: a value that many rows share is in memory once.

    Raises:
        ImageError: the file is missing or damaged.

    """
    try:
        if is_url(source):
            filesystem, path = open_source(source, access)
            file = filesystem.open_input_file(path)
        else:
            check_regular(source)
            file = arrow().OSFile(os.fsencode(source))
        options = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False}
        table = arrow().parquet.ParquetFile(file, **options)
        leaves = [table.schema.column(number) for number in range(table.metadata.num_columns)]
        shared = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        return arrow().parquet.ParquetFile(file, metadata=table.metadata, read_dictionary=shared, **options)
    except (OSError, ValueError, ImageError) as error:
        raise ImageError(f"{source}: cannot be read as Parquet ({_reason(error)})") from error


def _expand(name: str, columns: Columns, access: Access, passed: PassedOver) -> Iterator[Entry]:
    if (name == _STDIN or name.startswith("@")) and not os.path.lexists(name):
        for line in _lines(name.removeprefix("@"), access):
            try:
                access.check(line, name.removeprefix("@"))
            except RefusedError as error:
                raise OptionError(f"{name}: {as_text(line)} {error}") from error
            yield from _entry(line, columns, access, passed)
        return
    found = False
    for source in _expand_url(name, access, passed) if is_url(name) else map(str, iter_images([name], passed)):
        found = True
        yield from _entry(source, columns, access, passed)
    if not found:
        raise ImageError(
            f"{nothing_found(name, passed)} (Parquet files, zips and tars are named by a pattern: {name.rstrip('/')}/*{TABLE})"
        )


def _entry(source: str, columns: Columns, access: Access, passed: PassedOver) -> Iterator[Entry]:
    if is_archive(source):
        if count := count_images(source, access, passed):
            yield Entry(source, 0, count)
        return
    if not source.endswith(TABLE):
        yield Entry(source)
        return
    table = open_table(source, access)
    columns.of(table.schema_arrow, source)
    if table.metadata.num_rows:
        yield Entry(source, 0, table.metadata.num_rows)


def _lines(name: str, access: Access) -> Iterator[str]:
    try:
        with _open_list(name, access) as stream:
            lines = io.BufferedReader(stream) if is_url(name) else stream
            while line := lines.readline(_LONGEST_LINE):
                if len(line) == _LONGEST_LINE:
                    raise ImageError(
                        f"{name}: a line is longer than {_LONGEST_LINE:,} bytes; expected a path or URL a line"
                    )
                if text := os.fsdecode(line.rstrip(b"\r\n")):
                    yield text
    except OSError as error:
        raise ImageError(f"{name}: list cannot be read ({_reason(error)})") from error


def _open_list(name: str, access: Access) -> Any:
    if name == _STDIN and not os.path.lexists(name):
        return contextlib.nullcontext(sys.stdin.buffer)
    return open_stream(name, access) if is_url(name) else open(name, "rb")  # noqa: PTH123 - like the other


def _expand_url(url: str, access: Access, passed: PassedOver) -> Iterator[str]:
    """Yield the URLs of an object, of a folder's images, or of a pattern's matches, sorted by name."""
    try:
        filesystem, path = open_source(url, access)
        info = filesystem.get_file_info(path.rstrip("/") or "/")
        if info.is_file:
            yield url
            return
        folder, pattern = (url.rstrip("/"), None) if info.type == arrow().fs.FileType.Directory else _cut_pattern(url)
        inside = _files_below(folder, access)
    except OSError as error:
        raise ImageError(f"{url}: cannot be listed ({_reason(error)})") from error
    for parts in inside:
        if _is_image(parts) if pattern is None else _is_named(parts, pattern):
            yield f"{folder}/{'/'.join(parts)}"
        elif pattern is None and not _is_hidden(parts):
            passed.add(parts[-1])


def _cut_pattern(url: str) -> tuple[str, list[str] | None]:
    """Return the folder to list, and the parts of the pattern below it; None without a pattern."""
    scheme, _, rest = url.partition("://")
    parts = rest.rstrip("/").split("/")
    first = next((index for index, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    return f"{scheme}://{'/'.join(parts[:first])}", parts[first:] or None


def _files_below(folder: str, access: Access) -> list[list[str]]:
    """List a folder recursively; return the parts of each file's relative path, sorted."""
    filesystem, path = open_source(folder, access)
    inside = filesystem.get_file_info(arrow().fs.FileSelector(path, recursive=True))
    above = path.strip("/")  # some file systems put a slash in front of listed paths, and some do not
    return sorted(info.path.strip("/").removeprefix(above).strip("/").split("/") for info in inside if info.is_file)


def _is_named(parts: list[str], pattern: list[str]) -> bool:
    """Return whether the pattern matches a file, or a folder that contains it as an image."""
    if _matches(parts, pattern):
        return True
    return any(_matches(parts[:end], pattern) and _is_image(parts[end:]) for end in range(len(parts)))


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Match part by part, so that `*` stays inside a folder and `**` does not; neither matches hidden names."""
    if not pattern or not parts:
        return not parts and set(pattern) <= {"**"}
    hidden = parts[0].startswith(".") and not pattern[0].startswith(".")
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (not hidden and _matches(parts[1:], pattern))
    return not hidden and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _is_image(parts: list[str]) -> bool:
    return not _is_hidden(parts) and is_image_name(parts[-1])


def _is_hidden(parts: list[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def _reason(error: Exception) -> str:
    error = refusal(error) or error
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.split("\n")[0] or type(error).__name__
