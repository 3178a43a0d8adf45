"""Measure a patch scorer that learns from framing, without labels: what lies in the centre of photographs, by its content.

    python tools/measure_framing.py ../shared/data/tiny-imagenet-64.zip --cache ~/.cache/mimexport --model mae-small

A linear scorer of raw patch tokens predicts how near a patch lies to the centre of its photograph. It sees patches of random
crops. What the place in the crop says is subtracted from tokens and target, so that content alone decides, wherever the
subject is. The solution is that of a ridge regression. `abmilp` weights patches by the softmax of the score times a strength,
with or without closeness to the centre as its prior. The table compares with the mean and with closeness to the centre alone:
k-NN of training images, each left out in turn, to choose the strength; k-NN of validation images to judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from measure_aggregators import Bench, Part, beginning
from torch import Tensor

from mimeval import knn
from mimeval.accelerator import accelerated
from mimeval.baselines import leave_one_out
from mimeval.cli.options import DEVICE
from mimeval.datasets import Split, open_dataset
from mimeval.datasets.shifted import KINDS, shift
from mimeval.statistics import paired_difference
from mimexport.aggregators import Aggregator, make_aggregator
from mimexport.device import full_precision
from mimexport.fitting.ranking import load_scorer
from mimexport.fitting.stored_features import pool
from mimexport.fitting.tokens import as_tensor
from mimexport.fitting.unlabelled import SHRINKAGE
from mimexport.fitting.views import draw_crop
from mimexport.gpu_products import products_on
from mimexport.whitening import fit_two_view
from mimruntime.decode import decode

STRENGTHS = (0.25, 0.5, 1.0)
"""Standard deviations of the score in the exponent of the softmax per standard deviation of the score."""
_RIDGE = 0.01
RIVALS = ("mean", "center-weighted")
SETS = ("centred", "shifted")


@dataclass(frozen=True)
class Rights:
    """Whether each image is classified correctly, by set: training images left out in turn, and validation images."""

    training: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for tokens.")
@click.option("--model", required=True, help="An embedded backbone.")
@click.option("--training", default=10_000, show_default=True, help="Number of training images.")
@click.option("--images", default=10_000, show_default=True, help="Test images.")
@click.option("--views", default=4000, show_default=True, help="Number of images for random crops.")
@click.option("--shifted", nargs=2, default=(5000, 5000), show_default=True, help="Shifted training and test images.")
@DEVICE
def main(
    archive: Path,
    cache: Path,
    model: str,
    training: int,
    images: int,
    views: int,
    shifted: tuple[int, int],
    device: str,
) -> None:
    """Print the table."""
    whole = open_dataset(f"zip:{archive}", cache=cache)
    bench = Bench(
        model, beginning(whole, training, images), shift(beginning(whole, *shifted), tuple(KINDS)), views, cache, device
    )
    train = bench.centred[0].split
    with full_precision(), accelerated(products_on(bench.fitter.backbone.device)):
        w, share = fit_scorer(bench, train.take(np.arange(views)))
        click.echo(
            f"{model}: content explains {100 * share:.1f} % of what the place in the crop leaves of the closeness"
        )
        for whitened in (False, True):
            found = {name: judge(bench, aggregator, whitened=whitened) for name, aggregator in ways(bench, w)}
            click.echo("\n".join(table(found, f"{model}{', whitened' if whitened else ''}")))


def fit_scorer(bench: Bench, split: Split) -> tuple[Tensor, float]:
    """Return the scorer (D,), scaled to scores of unit deviation, and the explained share of the target's variance."""
    device, shape = bench.fitter.backbone.device, bench.fitter.backbone.shape
    targets = torch.cat([closeness(split, view, shape.grid) for view in (0, 1)]).to(device)
    tokens = torch.cat([as_tensor(view.patches, device).float() for view in bench.pairs])
    spread = tokens.flatten(0, 1).std(0)
    x = ((tokens - tokens.mean(0)) / spread).flatten(0, 1)  # by place: its mean says where a patch lies, not what it is
    y = (targets - targets.mean(0)).flatten()
    covariance = x.T @ x / len(x) + _RIDGE * torch.eye(shape.dim, device=device)
    w = torch.linalg.solve(covariance, x.T @ y / len(x))
    share = 1 - float((y - x @ w).square().mean() / y.square().mean())
    return w / spread / (x @ w).std(), share


def closeness(split: Split, view: int, grid: tuple[int, int]) -> Tensor:
    """Return the closeness (n, N) of each patch of a random view to the centre of its photograph: 1 there, 0 in a corner."""
    found = []
    for index in range(len(split)):
        width, height = decode(split.load(index)).size
        (left, top, right, bottom), flipped = draw_crop((width, height), index, view, 0)
        rows, columns = ((np.arange(edge) + 0.5) / edge for edge in grid)
        x = 2 * (left + (right - left) * (columns[::-1] if flipped else columns)) / width - 1
        y = 2 * (top + (bottom - top) * rows) / height - 1
        found.append(1 - np.hypot(y[:, None], x[None]).ravel() / np.sqrt(2))
    return torch.from_numpy(np.stack(found)).float()


def ways(bench: Bench, w: Tensor) -> Iterator[tuple[str, Aggregator]]:
    """Yield the rivals, and the scorer with each strength and prior."""
    shape = bench.fitter.backbone.shape
    for agg in (*RIVALS, "gem"):
        yield f"`{agg}`", make_aggregator(agg, shape, {})
    for prior in ("none", "center"):
        for strength in STRENGTHS:
            aggregator = make_aggregator("abmilp", shape, {"prior": prior})
            load_scorer(aggregator, strength * w.cpu())
            yield f"framing, {strength:g}{' x center' if prior == 'center' else ''}", aggregator.eval()


def judge(bench: Bench, aggregator: Aggregator, *, whitened: bool) -> Rights:
    """Return what is right with the vectors of an aggregator, on raw tokens."""
    backbone = bench.fitter.backbone

    def pooled(part: Part) -> Tensor:
        return pool(aggregator, part.tokens, backbone, final=False)

    mean, matrix = torch.zeros(()), None
    if whitened:
        first, second = (pool(aggregator, view, backbone, final=False) for view in bench.pairs)
        mean, matrix = fit_two_view(pooled(bench.centred[0]), first, second, SHRINKAGE)
    rights = Rights({}, {})
    for name, parts in zip(SETS, (bench.centred, bench.shifted), strict=True):
        tables = [pooled(part) if matrix is None else (pooled(part) - mean) @ matrix for part in parts]
        train, test = (table.cpu().numpy() for table in tables)
        labels = [part.split.labels for part in parts]
        rights.training[name] = leave_one_out(train, labels[0])
        rights.validation[name] = knn.predict(train, labels[0], test) == labels[1]
    return rights


def table(found: dict[str, Rights], title: str) -> Iterator[str]:
    """Yield the lines of a table: k-NN in per cent, and differences in points to each rival with 95 % intervals."""
    heads = [
        f"{kind}, {name}: k-NN, to the mean, to the centre" for kind in ("training", "validation") for name in SETS
    ]
    yield f"| {title} | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for name, rights in found.items():
        cells = []
        for kind in ("training", "validation"):
            for part in SETS:
                mine = getattr(rights, kind)[part]
                changes = [paired_difference(mine, getattr(found[f"`{rival}`"], kind)[part]) for rival in RIVALS]
                told = ", ".join(f"{100 * c.value:+.1f} [{100 * c.low:+.1f}, {100 * c.high:+.1f}]" for c in changes)
                cells.append(f"{100 * mine.mean():.1f}, {told}")
        yield f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
