"""Images for the page as JPEG without metadata; thumbnails are made once and cached."""

from __future__ import annotations

import io
import sqlite3
import threading
from pathlib import Path

from PIL import Image

from mimruntime.decode import Source, open_image
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.errors import OutputError
from mimruntime.search.cache import image_key
from mimruntime.search.gallery import Gallery

SMALL, LARGE = 256, 1280
"""Longer edge, px."""
_QUALITY = 86


class Pictures:
    """Thumbnails of a gallery, cached in one file, and larger pictures; thread-safe.

    Args:
        gallery: the images.
        file: the SQLite file; created if missing.

    Raises:
        OutputError: the file cannot be created, or is not such a cache.

    """

    def __init__(self, gallery: Gallery, file: Path) -> None:
        self._gallery = gallery
        self._budget = MemoryBudget()
        self._lock = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._kept = sqlite3.connect(file, timeout=30, check_same_thread=False, isolation_level=None)
            self._kept.execute("PRAGMA journal_mode=WAL")
            self._kept.execute("PRAGMA synchronous=OFF")  # lost thumbnails are made again
            self._kept.execute("CREATE TABLE IF NOT EXISTS thumbnail (key BLOB PRIMARY KEY, jpeg BLOB) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"cannot keep thumbnails in {file} ({error}); name another folder: --cache") from error

    def thumbnail(self, number: int) -> bytes:
        """Return a JPEG of an image, at most `SMALL` px; made at the first call.

        Raises:
            ImageError: the image cannot be decoded.

        """
        path = self._gallery.paths[number]
        key = image_key(path)
        with self._lock:
            row = self._kept.execute("SELECT jpeg FROM thumbnail WHERE key = ?", (key,)).fetchone()
        if row is not None:
            return bytes(row[0])
        jpeg = self._render(number, SMALL)
        if key is not None:
            with self._lock:
                self._kept.execute("INSERT OR IGNORE INTO thumbnail VALUES (?, ?)", (key, jpeg))
        return jpeg

    def picture(self, number: int) -> bytes:
        """Return a JPEG of an image, at most `LARGE` px; raises as `thumbnail` does."""
        return self._render(number, LARGE)

    def render(self, source: Source, longest: int) -> bytes:
        """Return an upright JPEG without metadata, at most `longest` px; raises as `thumbnail` does."""
        image = self.load(source, least=longest)
        image.thumbnail((longest, longest), Image.Resampling.BICUBIC, reducing_gap=2)
        image.info.clear()  # comments and colour profiles would be written
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=_QUALITY)
        return stream.getvalue()

    def load(self, source: Source, least: int | None = None) -> Image.Image:
        """Return an upright RGB image, decoded within the shared memory budget; raises as `thumbnail` does.

        Args:
            source: as in `mimruntime.decode.decode`.
            least: a JPEG may be decoded smaller, with a shorter edge of at least `least` px.

        """
        with open_image(source) as opened, self._budget.reserve(opened.memory):
            return opened.load(least)

    def _render(self, number: int, longest: int) -> bytes:
        with self._gallery.named(number):
            return self.render(self._gallery.paths[number], longest)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._kept.close()
