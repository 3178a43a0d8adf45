"""Index images with Qdrant, in this process, through a running service, then query it.

mimexport serve artifacts/mae-tiny-topk &
python examples/qdrant_index.py photos/ photos/cat.jpg [http://127.0.0.1:8000]

In place of the folder, a file that `mimexport embed` wrote: float32, fp16, int8 or bits.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams
from service import embed, gallery

SHOWN = 3


def build(client: QdrantClient, url: str, source: Path) -> str:
    """Create a collection named after the embedding space, so that two spaces cannot share one; return the space."""
    paths, vectors, space = gallery(url, source)
    client.create_collection(_name(space), VectorParams(size=vectors.shape[1], distance=Distance.COSINE))
    points = [
        PointStruct(id=row, vector=vector.tolist(), payload={"path": path})
        for row, (path, vector) in enumerate(zip(paths, vectors, strict=True))
    ]
    client.upsert(_name(space), points)
    return space


def _name(space: str) -> str:
    return space.replace("/", "-")  # a name of a collection has no slash


def query(client: QdrantClient, url: str, space: str, image: Path) -> list[tuple[str, float]]:
    """Return the nearest paths and their cosines; another embedding space is refused by the service (409)."""
    vectors, _ = embed(url, [image], expect_space=space)
    found = client.query_points(_name(space), vectors[0].tolist(), limit=SHOWN).points
    return [(str((point.payload or {})["path"]), point.score) for point in found]


def main(images: str, image: str, url: str = "http://127.0.0.1:8000") -> None:
    """Build a collection in memory and query it."""
    client = QdrantClient(":memory:")
    space = build(client, url, Path(images))
    for path, cosine in query(client, url, space, Path(image)):
        print(f"{cosine:.3f}  {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
