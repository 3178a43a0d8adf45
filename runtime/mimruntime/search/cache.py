"""A cache of image vectors in a folder; an image that has changed counts as new."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mimruntime.errors import OutputError
from mimruntime.writing import sweep, write_file

KEY_BYTES = 16
_PART = "part-*.npz"


class VectorCache:
    """A folder of files, each written whole; entries are found by `image_key`.

    Args:
        folder: the folder; created if missing.
        dim: length of a vector.

    Raises:
        OutputError: the folder cannot be created.

    """

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder = folder
        self._dim = dim
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {folder} ({error.strerror}); name another folder: --cache") from error
        sweep(folder)

    def read(self) -> dict[bytes, np.ndarray]:
        """Return all vectors, float32 (D,); skip a damaged file, since its images can be embedded again."""
        found: dict[bytes, np.ndarray] = {}
        for part in sorted(self.folder.glob(_PART)):
            try:
                with part.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                    keys, vectors = arrays["keys"], arrays["vectors"]
            except Exception:  # noqa: S112 - zip, npy and zlib each have their own types
                continue
            if keys.ndim == 2 and keys.shape[1] == KEY_BYTES and vectors.shape == (len(keys), self._dim):
                there = vectors.any(axis=1)  # parts of earlier versions have zeros for an image with an error
                found |= {key.tobytes(): row for key, row in zip(keys[there], vectors[there], strict=True)}
        return found

    def write(self, rows: Sequence[tuple[bytes, np.ndarray]]) -> None:
        """Store more vectors in a new file.

        Raises:
            OutputError: the file cannot be written.

        """
        if not rows:
            return
        keys = np.frombuffer(b"".join(key for key, _ in rows), np.uint8).reshape(-1, KEY_BYTES)
        stream = io.BytesIO()
        np.savez(stream, keys=keys, vectors=np.stack([vector for _, vector in rows]))
        # A unique name, since two programs may embed the same folder.
        write_file(self.folder / f"part-{secrets.token_hex(8)}.npz", stream.getbuffer())


def image_key(path: str) -> bytes | None:
    """Return the key of an image, made of its path, size and time of change; None if it is missing."""
    try:
        about = os.stat(path)  # noqa: PTH116 - paths travel as text
    except OSError:
        return None
    text = os.fsencode(os.path.abspath(path)) + b"\0%d\0%d" % (about.st_size, about.st_mtime_ns)  # noqa: PTH100 - links stay
    return hashlib.blake2b(text, digest_size=KEY_BYTES).digest()


def cache_folder(cache: Path, kind: str, parts: Iterable[str]) -> Path:
    """Return the folder in `cache` for data of `kind` that depend on `parts`."""
    name = hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]
    return cache.expanduser() / kind / name
