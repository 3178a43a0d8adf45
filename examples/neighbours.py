"""Print the nearest neighbours of every image in a file of vectors that `mimexport embed` wrote.

python examples/neighbours.py vectors.parquet
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from mimruntime import read_vectors

SHOWN = 3


def main(file: str) -> None:
    """Compare every vector with every other: unit vectors, so the dot product is the cosine."""
    stored = read_vectors(file)
    good = [i for i, error in enumerate(stored.errors) if error is None]
    vectors = stored.vectors[good]
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    for row, i in enumerate(good):
        nearest = np.argsort(-cosines[row])[:SHOWN]
        names = ", ".join(f"{Path(stored.paths[good[j]]).name} {cosines[row, j]:.2f}" for j in nearest)
        print(f"{Path(stored.paths[i]).name[:30]:30} {names}")


if __name__ == "__main__":
    main(sys.argv[1])
