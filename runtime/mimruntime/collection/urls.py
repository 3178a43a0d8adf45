"""Turn a URL into a pyarrow file system, or an fsspec one with the same methods, and a path."""

from __future__ import annotations

import functools
import re
from types import ModuleType
from typing import Any

from mimruntime.errors import MissingExtraError

_BUCKET = (r"[\w.-]+", "a bucket alone; keys and endpoint come from the environment")
_ACCOUNT = (r"([\w$-]+@)?[a-z0-9]+\.(blob|dfs)\.core\.windows\.net", "CONTAINER@ACCOUNT.dfs.core.windows.net")
_HOST = (r"[\w.-]*(:\d+)?", "HOST:PORT")
_ARROW_AUTHORITIES = {
    "abfs": _ACCOUNT,
    "abfss": _ACCOUNT,
    "file": ("", "an absolute path, file:///…"),
    "gcs": _BUCKET,
    "gs": _BUCKET,
    "hdfs": _HOST,
    "s3": _BUCKET,
    "viewfs": _HOST,
}
"""Allowed text between `://` and the path, for the schemes that pyarrow opens; fsspec opens the others. pyarrow would also
read options there (`s3://bucket?endpoint_override=…`), by which a list of images could send keys to another server."""


def is_url(name: str) -> bool:
    """Return whether `name` is a URL such as `s3://bucket/key` and not a path."""
    return "://" in name


def locate(url: str) -> tuple[Any, str]:
    """Return a pyarrow file system for `url`, and the path in it.

    Raises:
        MissingExtraError: fsspec or pyarrow is not installed.
        OSError: the storage is unknown or cannot be reached.

    """
    scheme, _, rest = url.partition("://")
    if scheme not in _ARROW_AUTHORITIES:
        return _through_fsspec(scheme, url)
    authority, _, key = rest.partition("/")
    # Without the path: an image's name may have characters that are not allowed in a URI.
    filesystem, root = _through_arrow(scheme, authority)
    return filesystem, f"{root}/{key}" if key else root or "/"


def arrow() -> ModuleType:
    """Return pyarrow with its file-system and Parquet modules loaded.

    Raises:
        MissingExtraError: pyarrow is not installed.

    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional
        import pyarrow.fs  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("a folder of shards", extra="parquet") from error
    module: ModuleType = pa
    return module


@functools.cache
def _through_arrow(scheme: str, authority: str) -> tuple[Any, str]:
    """Open a file system once per process; return it with the path of its root."""
    pattern, expected = _ARROW_AUTHORITIES[scheme]
    if not re.fullmatch(pattern, authority, re.ASCII):
        raise OSError(f"{scheme}://{authority} is refused; expected {expected}")
    try:
        filesystem, root = arrow().fs.FileSystem.from_uri(f"{scheme}://{authority}" + "/" * (scheme == "file"))
    except ValueError as error:
        raise OSError(f"{scheme}://{authority} is refused by pyarrow: {error}") from error
    return filesystem, root.rstrip("/")


def _through_fsspec(scheme: str, url: str) -> tuple[Any, str]:
    fs = arrow().fs
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingExtraError(f"{scheme}:// (through fsspec)", extra="ray") from error
    if "::" in url:
        raise OSError("URLs chained by :: are not opened")
    try:
        filesystem, path = url_to_fs(url)
    except ImportError as error:
        raise OSError(f"{scheme}:// needs another package: {error}") from error
    except ValueError as error:
        raise OSError(f"{scheme}:// is no storage that pyarrow or fsspec knows") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
