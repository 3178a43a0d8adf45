"""Open the output folder by its name: a path, or a URL of object storage."""

from __future__ import annotations

from pathlib import Path

from mimruntime.collection.folder import Folder, said
from mimruntime.collection.local_folder import LocalFolder
from mimruntime.collection.remote_folder import RemoteFolder
from mimruntime.collection.urls import is_url, locate


def open_folder(name: str) -> Folder:
    """Return the output folder at `name`, a path or a URL.

    Raises:
        OutputError: the storage of a URL is unknown or cannot be reached.

    """
    if is_url(name):
        with said(name, "cannot reach"):
            filesystem, path = locate(name)
        if filesystem.type_name != "local":
            return RemoteFolder(name.rstrip("/"), filesystem, path.rstrip("/"))
        name = path
    return LocalFolder(Path(name))
