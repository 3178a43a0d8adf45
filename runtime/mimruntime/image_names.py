"""Recognise image files by their names, and count the files that are skipped."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections import Counter
from pathlib import PurePosixPath

_LOG = logging.getLogger("mimexport")

_HEIC_EXTENSIONS = frozenset({".heic", ".heif", ".hif"})
EXTENSIONS = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".jpx",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
    }
    | _HEIC_EXTENSIONS
)
"""Extensions of image files in folders and archives (any case); a file given by its own path may have any name."""

_HEIC = "HEIC"
_SHOWN = 5
"""Number of formats to name; the others are only counted."""


def is_image_name(name: str) -> bool:
    """Return whether a file called `name` is an image of a supported format."""
    extension = _extension(name)
    return extension in EXTENSIONS and (extension not in _HEIC_EXTENSIONS or _reads_heic())


class PassedOver:
    """Counts skipped files by format."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Count one file."""
        extension = _extension(name)
        self._counts[_HEIC if extension in _HEIC_EXTENSIONS else extension[1:].upper() or "without extension"] += 1

    def __str__(self) -> str:
        """Return for example '12 files were passed over: 10 HEIC (…), 2 SVG', or '' without skipped files."""
        if not self._counts:
            return ""
        shown = [
            f"{count:,} {name}" + (' (pip install "mimexport[heif]" reads them)' if name == _HEIC else "")
            for name, count in self._counts.most_common(_SHOWN)
        ]
        left = self._counts.total() - sum(count for _, count in self._counts.most_common(_SHOWN))
        total = self._counts.total()
        files = "1 file was" if total == 1 else f"{total:,} files were"
        return f"{files} passed over: {', '.join(shown)}" + (f", {left:,} others" if left else "")

    def log(self) -> None:
        """Log the counts in one line, if there are any."""
        if text := str(self):
            _LOG.warning("%s", text)


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


@functools.cache
def _reads_heic() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None
