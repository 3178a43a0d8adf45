"""Index a folder of images with Qdrant, in this process, through a running service, then query it.

mimexport serve artifacts/mae-tiny-topk &
python examples/qdrant_index.py photos/ photos/cat.jpg [http://127.0.0.1:8000]
"""

from __future__ import annotations

import sys
from pathlib import Path

from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams
from service import embed

from mimruntime.image_paths import find_images

SHOWN = 3


def build(client: QdrantClient, url: str, images: list[Path]) -> str:
    """Create a collection named after the embedding space, so that two spaces cannot share one; return its name."""
    vectors, space = embed(url, images)
    client.create_collection(space, VectorParams(size=vectors.shape[1], distance=Distance.COSINE))
    points = [
        PointStruct(id=row, vector=vector.tolist(), payload={"path": str(path)})
        for row, (path, vector) in enumerate(zip(images, vectors, strict=True))
    ]
    client.upsert(space, points)
    return space


def query(client: QdrantClient, url: str, collection: str, image: Path) -> list[tuple[str, float]]:
    """Return the nearest paths and their cosines; another embedding space is refused by the service (409)."""
    vectors, _ = embed(url, [image], expect_space=collection)
    found = client.query_points(collection, vectors[0].tolist(), limit=SHOWN).points
    return [(str((point.payload or {})["path"]), point.score) for point in found]


def main(images: str, image: str, url: str = "http://127.0.0.1:8000") -> None:
    """Build a collection in memory and query it."""
    client = QdrantClient(":memory:")
    collection = build(client, url, find_images([images]))
    for path, cosine in query(client, url, collection, Path(image)):
        print(f"{cosine:.3f}  {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
