"""Where results go, tried before the work that makes them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mimruntime.errors import OutputError


def check_writable(path: Path) -> None:
    """Make the folder of a file that will be written, and refuse a place that takes none.

    Raises:
        OutputError: `path` is a folder, or its folder cannot be made or written to.

    """
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
