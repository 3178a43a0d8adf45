"""Measure whitenings on training images to choose shrinkage and dimension; write the table in docs/results/whitening.md.

    python tools/choose_whitening.py ../shared/data/tiny-imagenet-64.zip --cache ~/.cache/mimexport

One training image of six is a query, the others are the gallery; validation images are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from mimeval import knn
from mimeval.cli.options import DEVICE
from mimeval.datasets import open_dataset
from mimexport.aggregators import AGGREGATORS
from mimexport.fitting.fitter import FitOptions, Fitter
from mimexport.fitting.sources import LazySources
from mimexport.fitting.tokens import Tokens
from mimexport.heads import Head, embedded_heads, load_head, plain_head
from mimexport.whitening import fit_pca, fit_two_view

DOCS = Path(__file__).parents[1] / "docs" / "results" / "whitening.md"
SHRINKAGES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
DIMS = (192, 128, 64, 32)
_ASKING = 6


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for tokens.")
@DEVICE
def main(archive: Path, cache: Path, device: str) -> None:
    """Write the k-NN accuracy by whitening, aggregator, shrinkage and dimension."""
    train = open_dataset(f"zip:{archive}", cache=cache).train
    images, labels = LazySources(range(len(train)), train.load), train.labels
    options = FitOptions(model="mae-tiny", agg="mean", images=images, labels=None, digest=train.digest, cache=cache)
    fitter = Fitter(replace(options, device=device))
    whole, views = fitter.tokens(images, train.digest, "training"), fitter.views()
    lines = [f"| aggregator | whitening | {' | '.join(f'{s:g}' for s in SHRINKAGES)} | {_dims_title()} |"]
    lines.append("|---" * (2 + len(SHRINKAGES) + len(DIMS) - 1) + "|")
    for name, head in _heads(fitter):
        plain, first, second = (_vectors(fitter, head, part) for part in (whole, *views))
        click.echo(f"{name}: {_accuracy(plain, labels):.1f} without whitening", err=True)
        for kind in ("PCA", "two views"):
            found = {}
            for shrinkage in SHRINKAGES:
                mean, matrix = (
                    fit_pca(plain, shrinkage) if kind == "PCA" else fit_two_view(plain, first, second, shrinkage)
                )
                found[shrinkage] = (mean, matrix, _accuracy((plain - mean) @ matrix, labels))
            best = max(found, key=lambda shrinkage: found[shrinkage][2])
            mean, matrix, _ = found[best]
            narrow = [_accuracy((plain - mean) @ matrix[:, :dim], labels) for dim in DIMS[1:]]
            cells = [f"{accuracy:.1f}" for _, _, accuracy in found.values()] + [f"{value:.1f}" for value in narrow]
            lines.append(f"| {name} | {kind} | {' | '.join(cells)} |")
            click.echo(lines[-1], err=True)
    marker = "<!-- written by tools/choose_whitening.py, below this line -->"
    prose = DOCS.read_text(encoding="utf-8").split(marker)[0]
    DOCS.write_text(f"{prose}{marker}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    click.echo(f"{DOCS}")


def _heads(fitter: Fitter) -> Iterator[tuple[str, Head]]:
    """Yield heads of aggregators that learn nothing, then the heads in the package."""
    for name in ("cls", "mean", "cls+mean", "center-weighted", "topk"):
        norm = AGGREGATORS[name].token_norm
        yield f"`{name}`", plain_head(name, norm, fitter.loaded, fitter.backbone.shape, fitter.backbone.keep)
    for name in ("abmilp-unlabelled", "abmilp", "ep"):
        yield f"`{name}`", load_head(embedded_heads("mae-tiny")[name])


def _vectors(fitter: Fitter, head: Head, tokens: Tokens) -> Tensor:
    return torch.from_numpy(fitter.vectors(head, tokens, whitened=False))


def _accuracy(vectors: Tensor, labels: np.ndarray) -> float:
    table, asking = vectors.numpy(), np.arange(len(labels)) % _ASKING == 0
    return 100 * float((knn.predict(table[~asking], labels[~asking], table[asking]) == labels[asking]).mean())


def _dims_title() -> str:
    return " | ".join(f"{dim} of {DIMS[0]}" for dim in DIMS[1:])


if __name__ == "__main__":
    main()
