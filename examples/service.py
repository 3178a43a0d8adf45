"""The few lines a client of `mimexport serve` needs: upload files, get vectors, keep the embedding space."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimruntime import read_vectors
from mimruntime.image_paths import find_images

FILES_A_REQUEST = 16


def embed(url: str, paths: Sequence[Path], *, expect_space: str | None = None) -> tuple[np.ndarray, str]:
    """Return unit vectors, float32 (n, D), in order, and the embedding space they live in.

    Args:
        url: of the service, as "http://127.0.0.1:8000".
        paths: image files.
        expect_space: the space of an index; the service answers 409 where its own differs.

    """
    dims = (expect_space or "").partition("/")[2]  # a space SPACE/N is that of the first N dimensions
    where = f"{url}/v1/embeddings/image" + (f"?dimensions={dims}" if dims else "")
    answers = [_post(where, group, expect_space) for group in _groups(paths)]
    vectors = [item["embedding"] for answer in answers for item in answer["data"]]
    return np.array(vectors, np.float32), answers[0]["embedding_space"]


def gallery(url: str, source: Path) -> tuple[list[str], np.ndarray, str]:
    """Return paths, unit vectors (n, D) and their embedding space.

    Args:
        url: of the service, which embeds what is not yet.
        source: a folder of images, or a file that `mimexport embed` wrote, however its vectors are stored.

    """
    if source.suffix in {".npz", ".parquet"}:
        stored = read_vectors(source)
        good = [row for row, error in enumerate(stored.errors) if error is None]
        return [stored.paths[row] for row in good], stored.vectors[good], stored.space
    images = find_images([source])
    return [str(image) for image in images], *embed(url, images)


def _groups(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    return (paths[start : start + FILES_A_REQUEST] for start in range(0, len(paths), FILES_A_REQUEST))


def _post(url: str, paths: Sequence[Path], expect_space: str | None) -> dict[str, Any]:
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="image"\r\n\r\n'.encode()
        + path.read_bytes()
        + b"\r\n"
        for path in paths
    ]
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    if expect_space is not None:
        headers["X-Embedding-Space"] = expect_space
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        return json.load(answer)
