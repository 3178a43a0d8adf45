"""Check before any computing that a result can be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mimruntime.errors import OutputError


def check_writable(path: Path) -> None:
    """Create the parent folder of an output file, and raise OutputError if the file could not be written.

    Raises:
        OutputError: `path` is a folder, or its parent cannot be created or written to.

    """
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
