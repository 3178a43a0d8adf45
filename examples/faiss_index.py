"""Index images with FAISS through a running service, then ask for the neighbours of one of them.

mimexport serve artifacts/mae-tiny-topk &
python examples/faiss_index.py photos/ photos/cat.jpg [http://127.0.0.1:8000]

In place of the folder, a file that `mimexport embed` wrote: float32, fp16, int8 or bits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import faiss
from service import embed, gallery

SHOWN = 3


def build(url: str, source: Path, folder: Path) -> None:
    """Write the index, and beside it what it must never be separated from: the space and the paths."""
    paths, vectors, space = gallery(url, source)
    index = faiss.IndexFlatIP(vectors.shape[1])  # unit vectors: the inner product is the cosine
    index.add(vectors)
    faiss.write_index(index, str(folder / "index.faiss"))
    (folder / "index.json").write_text(json.dumps({"space": space, "paths": paths}))


def query(url: str, image: Path, folder: Path) -> list[tuple[str, float]]:
    """Return the nearest paths and their cosines; another embedding space is refused by the service (409)."""
    about = json.loads((folder / "index.json").read_text())
    vectors, _ = embed(url, [image], expect_space=about["space"])
    cosines, rows = faiss.read_index(str(folder / "index.faiss")).search(vectors, SHOWN)
    return [(about["paths"][row], float(cosine)) for row, cosine in zip(rows[0], cosines[0], strict=True)]


def main(images: str, image: str, url: str = "http://127.0.0.1:8000") -> None:
    """Build an index in a temporary folder and query it."""
    with tempfile.TemporaryDirectory() as folder:
        build(url, Path(images), Path(folder))
        for path, cosine in query(url, Path(image), Path(folder)):
            print(f"{cosine:.3f}  {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
