"""Draw the nearest neighbours by two artifacts side by side, for the picture in the README.

python tools/draw_neighbours.py artifacts/mae-small-cls artifacts/mae-small-topk docs/images/neighbours.png

The images are crops of photographs in scikit-image and scikit-learn. A neighbour is correct if it shows the same place of
the same photograph. Queries are random crops of different photographs, not chosen by their result.
"""

from __future__ import annotations

import io
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from mimeval.datasets import Dataset
from mimeval.datasets.crops import VIEWS, open_crops
from mimruntime import Embedder

SHOWN = VIEWS - 1
"""Number of neighbours per query; equal to the number of correct ones."""
RIGHT, WRONG = "#2e9e4f", "#d0d0d0"


@click.command()
@click.argument("artifacts", nargs=2, type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--queries", default=5, help="Rows.")
@click.option("--seed", default=0, help="Seed of the choice of queries.")
def main(artifacts: tuple[Path, Path], out: Path, queries: int, seed: int) -> None:
    """Write OUT, a PNG, and print the share of correct neighbours over all crops."""
    data = open_crops()
    images = [data.test.load(row) for row in range(len(data.test))]
    rows = draw_queries(data, queries, seed)
    mpl.use("Agg")
    figure = plt.figure(figsize=(9.2, 0.86 * queries + 0.4), layout="constrained")
    for panel, artifact in zip(figure.subfigures(1, 2, wspace=0.03), artifacts, strict=True):
        with Embedder.open(artifact) as embedder:
            neighbours = find_neighbours(embedder.embed(images))
        share = np.mean(data.test.labels[neighbours] == data.test.labels[:, None])
        title = f"{artifact.name}: {100 * share:.0f} % of {neighbours.size:,} neighbours are right"
        click.echo(title)
        draw_panel(panel, title, rows, neighbours, data, images)
    save(figure, out)


def draw_queries(data: Dataset, count: int, seed: int) -> np.ndarray:
    """Return rows of `count` random crops, each of a different photograph."""
    photographs = np.array([name.rsplit(" ", 3)[0] for name in data.test.names])
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.unique(photographs))[:count]
    return np.array([rng.choice(np.flatnonzero(photographs == name)) for name in chosen])


def find_neighbours(vectors: np.ndarray) -> np.ndarray:
    """Return the rows of the nearest neighbours of each vector, int64 (N, SHOWN), nearest first."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :SHOWN]


def draw_panel(
    panel: SubFigure, title: str, rows: np.ndarray, neighbours: np.ndarray, data: Dataset, images: list[bytes]
) -> None:
    """Draw each query and its neighbours; frames mark correct ones."""
    panel.suptitle(title, fontsize=9)
    grid = panel.subplots(len(rows), SHOWN + 1, squeeze=False)
    for axes, query in zip(grid, rows, strict=True):
        for axis, row in zip(axes, (query, *neighbours[query]), strict=True):
            axis.imshow(Image.open(io.BytesIO(images[row])).resize((96, 96)))
            axis.set(xticks=[], yticks=[])
            colour = "black" if row == query else RIGHT if data.test.labels[row] == data.test.labels[query] else WRONG
            for spine in axis.spines.values():
                spine.set(color=colour, linewidth=1 if colour == WRONG else 3)


def save(figure: Figure, out: Path) -> None:
    """Write the figure with a palette of 128 colours, which needs a third of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.open(drawn).convert("RGB").quantize(128).save(out, optimize=True)


if __name__ == "__main__":
    main()
