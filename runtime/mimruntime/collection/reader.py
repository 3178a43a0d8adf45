"""Read the named images of a work list; URLs are fetched ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mimruntime.collection.access import LOCAL_ONLY, Access, RefusedError, refusal
from mimruntime.collection.archives import is_archive, read_images_of
from mimruntime.collection.inputs import Columns, Entry, open_table
from mimruntime.collection.sources import open_stream
from mimruntime.collection.urls import arrow, is_url
from mimruntime.decode import Source
from mimruntime.errors import ImageError, OptionError
from mimruntime.image_paths import as_text

_FETCHERS = 16
_AHEAD = 32
"""Number of objects that are being fetched or wait to be decoded."""
_ROWS = 64
"""Rows of a Parquet file that are Python objects at a time."""
_PIECE = 1 << 20
"""Bytes of an object read at a time."""
_MOST_EXPANSION = 100
_LONGEST_NAME = 1 << 16

Named = tuple[str, Source | ImageError]
"""The name of a row, and its image or error."""


def read_images(
    entries: Iterable[Entry],
    columns: Columns,
    base: str = "",
    access: Access = LOCAL_ONLY,
) -> Iterator[Named]:
    """Yield every image of `entries`, in order.

    Args:
        entries: files, and ranges of images within files.
        columns: columns of Parquet files.
        base: folder to which relative paths refer.
        access: URLs that Parquet cells may name, and the largest object or cell.

    """
    return _fetched((named for entry in entries for named in _named(entry, columns, base, access)), base, access)


def _named(entry: Entry, columns: Columns, base: str, access: Access) -> Iterator[Named]:
    if not entry.is_range:
        yield as_text(entry.source), entry.source
        return
    row = entry.start
    try:
        for name, image in _images_of(entry, columns, base, access):
            yield name, _checked(image, entry.source, base, access)
            row += 1
        if row < entry.stop:
            raise ImageError(f"the file ends at row {row}; it held more when the list was made")
    except (ImageError, OptionError, OSError, ValueError) as error:
        # The file was changed or lost after the list was made: every remaining row gets this error.
        for left in range(row, entry.stop):
            yield f"{as_text(entry.source)}#{left}", ImageError(str(error).split("\n")[0])


def _images_of(entry: Entry, columns: Columns, base: str, access: Access) -> Iterator[Named]:
    if is_archive(entry.source):
        # The name is that of the entry; the path refers to the folder in which the job was started.
        place = _absolute(entry.source, base)
        for name, image in read_images_of(place, entry.start, entry.stop, access):
            yield as_text(entry.source) + name.removeprefix(as_text(place)), image
    else:
        yield from _rows(entry, columns, base, access)


def _checked(image: Source | ImageError, table: str, base: str, access: Access) -> Source | ImageError:
    """Return the image in a cell of `table`, or an error if it may not be read."""
    try:
        if isinstance(image, str):
            access.check(_absolute(image, base), table)
        elif isinstance(image, bytes):
            access.check_size(len(image))
    except RefusedError as error:
        return ImageError(str(error))
    return image


def _rows(entry: Entry, columns: Columns, base: str, access: Access) -> Iterator[Named]:
    table = open_table(_absolute(entry.source, base), access)
    image, path = columns.of(table.schema_arrow, entry.source)
    wanted = [image] if path is None else [image, path]
    _check_expansion(table.metadata, wanted, access)
    groups, row = _groups(table.metadata, entry)
    for batch in table.iter_batches(batch_size=_ROWS, row_groups=groups, columns=wanted):
        first, row = row, row + len(batch)
        if row <= entry.start or first >= entry.stop:
            continue
        names = batch.column(path) if path else [None] * len(batch)
        for index, value, name in zip(range(first, row), batch.column(image), names, strict=True):
            if entry.start <= index < entry.stop:
                yield _cell(f"{as_text(entry.source)}#{index}", value, name)


def _check_expansion(metadata: Any, columns: list[str], access: Access) -> None:
    """Refuse pages that expand too much for names and for images, which are already compressed.

    Raises:
        ImageError: a row group of one of the columns declares such sizes.

    """
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        for number in range(about.num_columns):
            chunk = about.column(number)
            packed, whole = chunk.total_compressed_size, chunk.total_uncompressed_size
            # A name may have dots; pyarrow reads every column that begins so.
            column = next((one for one in columns if f"{chunk.path_in_schema}.".startswith(f"{one}.")), None)
            if column is not None and whole > access.max_bytes and whole > _MOST_EXPANSION * packed:
                raise ImageError(
                    f"row group {group} of column '{column}' grows from {packed:,} bytes to {whole:,}, as no images or"
                    " names do; it is not read"
                )


def _groups(metadata: Any, entry: Entry) -> tuple[list[int], int]:
    """Return the row groups with the entry's rows, and the first row of the first group."""
    groups: list[int] = []
    begin = row = 0
    for group in range(metadata.num_row_groups):
        end = row + metadata.row_group(group).num_rows
        if end > entry.start and row < entry.stop:
            if not groups:
                begin = row
            groups.append(group)
        row = end
    return groups, begin


def _cell(place: str, cell: Any, name_cell: Any) -> Named:
    """Return the name and image of a cell: bytes, a path, or Hugging Face's {bytes, path}."""
    length = max(_text_bytes(cell), 0 if name_cell is None else _text_bytes(name_cell, is_name=True))
    if length > _LONGEST_NAME:
        return place, ImageError(f"has a name or path of {length:,} bytes; at most {_LONGEST_NAME:,} are read")
    value, name = cell.as_py(), None if name_cell is None else name_cell.as_py()
    path = None
    if isinstance(value, dict):
        path = value.get("path")
        value = value.get("bytes") or path
    if isinstance(value, str):
        path = path or value
    called = as_text(next(str(one) for one in (name, path, place) if one is not None and one != ""))
    if isinstance(value, bytes | str):
        return called, value
    return called, ImageError(f"holds {'nothing' if value is None else type(value).__name__}; expected bytes or a path")


def _text_bytes(cell: Any, *, is_name: bool = False) -> int:
    """Return the length of the longest text in a cell, which is not copied; a name is a text whatever its type."""
    pa = arrow()
    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    if not cell.is_valid:
        return 0
    if isinstance(cell, pa.StructScalar) and not is_name:
        return max(map(_text_bytes, cell.values()), default=0)
    if is_name or pa.types.is_string(cell.type) or pa.types.is_large_string(cell.type):
        return len(cell.as_buffer() if isinstance(cell, pa.BinaryScalar) else str(cell.as_py()))
    return 0


def _fetched(images: Iterable[Named], base: str, access: Access) -> Iterator[Named]:
    """Replace URLs by their bytes, fetched up to a window ahead of the reader."""
    window: deque[tuple[str, Source | ImageError | Future[bytes]]] = deque()
    pool = ThreadPoolExecutor(_FETCHERS, "mimruntime-fetch")
    try:
        for name, image in images:
            if isinstance(image, str):
                window.append((name, pool.submit(_fetch, image, access) if is_url(image) else _absolute(image, base)))
            else:
                window.append((name, image))
            if len(window) > _AHEAD:
                yield _arrived(*window.popleft())
        while window:
            yield _arrived(*window.popleft())
    finally:  # if the reader stops early, do not wait for fetches in progress
        pool.shutdown(wait=False, cancel_futures=True)


def _arrived(name: str, image: Source | ImageError | Future[bytes]) -> Named:
    if not isinstance(image, Future):
        return name, image
    try:
        return name, image.result()
    except Exception as error:  # every file system has its own errors
        if refused := refusal(error):
            return name, ImageError(str(refused))
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return name, ImageError(f"cannot be read ({reason.splitlines()[0] if reason else type(error).__name__})")


def _fetch(url: str, access: Access) -> bytes:
    content = bytearray()
    with open_stream(url, access) as stream:
        while piece := stream.read(_PIECE):
            content += piece
            access.check_size(len(content))
    return bytes(content)


def _absolute(path: str, base: str) -> str:
    return path if is_url(path) or not base else os.path.join(base, path)  # noqa: PTH118 - paths travel as text
