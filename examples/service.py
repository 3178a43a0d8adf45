"""The few lines a client of `mimexport serve` needs: upload files, get vectors, keep the embedding space."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILES_A_REQUEST = 16


def embed(url: str, paths: Sequence[Path], *, expect_space: str | None = None) -> tuple[np.ndarray, str]:
    """Return unit vectors, float32 (n, D), in order, and the embedding space they live in.

    Args:
        url: of the service, as "http://127.0.0.1:8000".
        paths: image files.
        expect_space: the space of an index; the service answers 409 where its own differs.

    """
    answers = [_post(url, group, expect_space) for group in _groups(paths)]
    vectors = [item["embedding"] for answer in answers for item in answer["data"]]
    return np.array(vectors, np.float32), answers[0]["embedding_space"]


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
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/embeddings/image", body, headers)) as answer:
        return json.load(answer)
