"""Vectors of images that were embedded before, kept in a folder: an image that has changed since counts as new."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimruntime.errors import OutputError
from mimruntime.writing import sweep, write_file

KEY_BYTES = 16
_PART = "part-*.npz"


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """One image that was embedded.

    Attributes:
        vector: float32 (D,); None where it could not be read.
        error: the reason, one line; "" where there is a vector.

    """

    vector: np.ndarray | None
    error: str = ""


class VectorCache:
    """A folder of parts, each written whole; what is read of it is found by `image_key`.

    Args:
        folder: made where it is missing.
        dim: length of a vector.

    Raises:
        OutputError: the folder cannot be made.

    """

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder = folder
        self._dim = dim
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {folder} ({error.strerror}); name another folder: --cache") from error
        sweep(folder)

    def read(self) -> dict[bytes, Kept]:
        """Return everything that is kept; a part that is damaged is passed over, for its images can be embedded again."""
        found: dict[bytes, Kept] = {}
        for part in sorted(self.folder.glob(_PART)):
            try:
                with part.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                    keys, vectors, errors = arrays["keys"], arrays["vectors"], arrays["errors"].tolist()
            except Exception:  # noqa: S112 - zip, npy and zlib each have their own types
                continue
            if keys.shape == (len(errors), KEY_BYTES) and vectors.shape == (len(errors), self._dim):
                rows = zip(keys, vectors, errors, strict=True)
                found |= {key.tobytes(): Kept(None if error else row, error) for key, row, error in rows}
        return found

    def write(self, rows: Sequence[tuple[bytes, Kept]]) -> None:
        """Keep more, as a part of its own.

        Raises:
            OutputError: it cannot be written.

        """
        if not rows:
            return
        keys = np.frombuffer(b"".join(key for key, _ in rows), np.uint8).reshape(-1, KEY_BYTES)
        vectors = np.zeros((len(rows), self._dim), np.float32)
        for place, (_, kept) in zip(vectors, rows, strict=True):
            if kept.vector is not None:
                place[:] = kept.vector
        stream = io.BytesIO()
        np.savez(stream, keys=keys, vectors=vectors, errors=np.array([kept.error for _, kept in rows], np.str_))
        # A name that no other program takes: two may embed one folder.
        write_file(self.folder / f"part-{secrets.token_hex(8)}.npz", stream.getbuffer())


def image_key(path: str) -> bytes | None:
    """Return what an image is known by: place, size and time of its last change; None where it is gone."""
    try:
        about = os.stat(path)  # noqa: PTH116 - paths travel as text
    except OSError:
        return None
    text = os.fsencode(os.path.abspath(path)) + b"\0%d\0%d" % (about.st_size, about.st_mtime_ns)  # noqa: PTH100 - links stay
    return hashlib.blake2b(text, digest_size=KEY_BYTES).digest()


def cache_folder(cache: Path, kind: str, parts: Iterable[str]) -> Path:
    """Return where in `cache` what depends on `parts` is kept."""
    name = hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]
    return cache.expanduser() / kind / name
