"""Fit all heads of the embedded backbones and measure all aggregators on labelled images, centred and shifted.

    python tools/measure_aggregators.py ../shared/data/tiny-imagenet-64.zip --cache ~/.cache/mimexport --model mae-small --ship
    python tools/aggregator_tables.py

For aggregators that learn nothing, the better token norm is chosen on training images. Results are stored in `--results`, one
file per backbone, after each row; a second run measures the rows that are missing. The second command writes the pages from
them. `--ship` writes the heads into the package. Tokens are stored in the cache.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import aggregator_tables
import click
import numpy as np

from mimeval import knn, linear_probe
from mimeval.accelerator import accelerated
from mimeval.baselines import leave_one_out
from mimeval.cli.options import DEVICE
from mimeval.cli.progress import ConsoleProgress
from mimeval.datasets import Dataset, Split, open_dataset
from mimeval.datasets.dataset import others_of_class
from mimeval.datasets.shifted import KINDS, kind_of, shift
from mimeval.datasets.subset import balanced_order
from mimeval.retrieval import retrieve
from mimexport.aggregators import AGGREGATORS, make_aggregator
from mimexport.device import describe_device
from mimexport.fitting.fitter import FitOptions, Fitter
from mimexport.fitting.sources import LazySources
from mimexport.fitting.stored_features import pool
from mimexport.fitting.tokens import Tokens
from mimexport.gpu_products import products_on
from mimexport.heads import Head, save_head
from mimruntime.manifest import TokenNorm

SHIPPED = Path(__file__).parents[1] / "export" / "mimexport" / "assets" / "heads"


@dataclass(frozen=True)
class Row:
    """One row of the table: an aggregator, its options, and whether its head is learned with labels.

    Attributes:
        shipped: name of the head in the package, or None; of the two [cls] only the stronger is included.
        norm: token norm; None takes the better one on training images.
    """

    agg: str
    options: dict[str, Any] = field(default_factory=dict)
    labels: bool = False
    shipped: str | None = None
    norm: TokenNorm | None = None

    @property
    def title(self) -> str:
        """The options as a user would type them."""
        options = [f"--{key} {value}" for key, value in self.options.items()]
        options += [f"--token-norm {self.norm}"] if self.norm else []
        return f"`{' '.join([self.agg, *options])}`" + (", labels" if self.labels else "")

    @property
    def learned(self) -> bool:
        """Whether its parameters are learned, on raw tokens."""
        return AGGREGATORS[self.agg].needs_head or self.options.get("score") == "learned"


ROWS = [
    Row("cls", norm="raw", shipped="cls"),
    Row("cls", norm="final", shipped="cls"),
    Row("mean", shipped="mean"),
    Row("cls+mean"),
    Row("max"),
    Row("gem"),
    Row("center"),
    Row("center-weighted", shipped="center-weighted"),
    Row("attn-mean"),
    Row("attn-min-entropy"),
    *(
        Row("topk", {"score": score, "k": k}, shipped="topk" if (score, k) == ("center-norm", "75%") else None)
        for score, k in (
            ("center-norm", "50%"), ("center-norm", "75%"), ("input-norm", "50%"), ("input-norm", "75%"),
            ("norm", "75%"), ("cls-attention", "50%"), ("cls-attention", "75%"),
        )
    ),
    Row("topk", {"score": "learned"}, shipped="topk-learned"),
    Row("abmilp", shipped="abmilp-unlabelled"),
    Row("abmilp", {"prior": "center"}, shipped="abmilp-center-unlabelled"),
    Row("abmilp", labels=True, shipped="abmilp"),
    Row("ep", labels=True, shipped="ep"),
    Row("simpool", labels=True),
    Row("aim", labels=True),
]  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Training or test images with their stored tokens."""

    split: Split
    tokens: Tokens


def _sources(split: Split) -> LazySources:
    return LazySources(range(len(split)), split.load)


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for tokens.")
@click.option("--model", "model_name", required=True, help="An embedded backbone.")
@click.option("--training", default=10_000, show_default=True, help="Number of training images.")
@click.option("--images", default=10_000, show_default=True, help="Test images.")
@click.option("--views", default=4000, show_default=True, help="Number of images for two views.")
@click.option(
    "--shifted", nargs=2, default=(5000, 5000), show_default=True, help="Number of shifted training and test images."
)
@click.option("--ship", is_flag=True, help="Write the heads into the package.")
@click.option("--probe/--no-probe", default=True, help="Also measure linear probes, which take most of the time.")
@click.option("--row", "titles", multiple=True, help="Measure only these rows; keep the others.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("docs/results"), show_default=True)
@DEVICE
def main(
    archive: Path, cache: Path, model_name: str, training: int, images: int, views: int, shifted: tuple[int, int],
    ship: bool, probe: bool, titles: tuple[str, ...], results: Path, device: str,
) -> None:  # fmt: skip
    """Measure all rows that are not in the results yet."""
    if unknown := set(titles) - {row.title for row in ROWS}:
        raise click.BadParameter(f"no row {', '.join(sorted(unknown))}; there are: {', '.join(r.title for r in ROWS)}")
    whole = open_dataset(f"zip:{archive}", cache=cache)
    centred = beginning(whole, training, images)
    moved = shift(beginning(whole, *shifted), tuple(KINDS))
    file = results / f"aggregators-{model_name}.json"
    bench = Bench(model_name, centred, moved, views, cache, device)
    with accelerated(products_on(bench.fitter.backbone.device)):
        stored = aggregator_tables.read(file) if file.exists() else bench.describe()
        if stored["sizes"] != bench.sizes:
            raise click.UsageError(f"{file} has other sizes, {stored['sizes']}; remove it or give other --results")
        for row in ROWS:
            if row.title in stored["rows"] or (titles and row.title not in titles):
                continue
            started = time.perf_counter()
            head, found = bench.measure(row, stored["norms"], probe=probe)
            stored["rows"][row.title] = found | {"agg": row.agg, "options": row.options, "labels": row.labels}
            aggregator_tables.write(stored, file)
            seconds = time.perf_counter() - started
            click.echo(f"{row.title}: {aggregator_tables.summary(found)}, {seconds:.1f} s", err=True)
            if ship and _ships(row, stored):
                save_head(head, SHIPPED / model_name / f"{row.shipped}.safetensors")


def _ships(row: Row, stored: dict[str, Any]) -> bool:
    """Return whether the package has a head of this row; of the two [cls], of the stronger one alone."""
    return row.shipped is not None and (
        row.agg != "cls" or aggregator_tables.strongest(stored, ", whitened") == row.title
    )


def beginning(dataset: Dataset, training: int, images: int) -> Dataset:
    """Return the first images of a class-balanced order."""
    if dataset.train is None:
        raise click.UsageError(f"{dataset.name} has no images to learn from")
    parts = ((dataset.train, training), (dataset.test, images))
    train, test = (split.take(balanced_order(split, 0)[:count]) for split, count in parts)
    return replace(dataset, train=train, test=test)


class Bench:
    """A backbone with the tokens of all training and test images."""

    def __init__(
        self, model: str, centred: Dataset, shifted: Dataset, views: int, cache: Path, device: str = "auto"
    ) -> None:
        train = centred.train
        options = FitOptions(
            model=model, agg="mean", images=_sources(train), labels=None, digest=train.digest, cache=cache,
            two_view=_sources(train.take(np.arange(views))), device=device,
        )  # fmt: skip
        self._model, self._views = model, views
        self.fitter = Fitter(options, lambda line: click.echo(line, err=True), ConsoleProgress().progress)
        self.centred, self.shifted = (self._parts(dataset) for dataset in (centred, shifted))
        self.pairs = self.fitter.views()

    @property
    def sizes(self) -> dict[str, list[int]]:
        """Numbers of training and test images by set."""
        sets = (("centred", self.centred), ("shifted", self.shifted))
        return {name: [len(part.split) for part in parts] for name, parts in sets}

    def describe(self) -> dict[str, Any]:
        """Return the results without rows: sizes of the data and the norms."""
        free = [agg for agg, kind in AGGREGATORS.items() if not kind.needs_head]
        return {
            "model": self._model, "weights_sha256": self.fitter.loaded.sha256, "sizes": self.sizes, "views": self._views,
            "device": describe_device(self.fitter.backbone.device), "kinds": self._kinds(),
            "norms": {agg: self._norms(agg) for agg in free}, "rows": {},
        }  # fmt: skip

    def measure(self, row: Row, norms: dict[str, dict[str, float]], *, probe: bool) -> tuple[Head, dict[str, Any]]:
        """Return the head of a row, and the scores per image by metric, space and set."""
        norm = row.norm or (None if row.learned else max(norms[row.agg], key=lambda name: norms[row.agg][name]))
        labels = self.centred[0].split.labels if row.labels else None
        fitter = self.fitter.for_head(agg=row.agg, agg_options=row.options, labels=labels, token_norm=norm)
        head = fitter.fit(self.centred[0].tokens, self.pairs)
        found: dict[str, Any] = {"norm": head.token_norm, "recall": head.figures["two_view_recall_at_1"]}
        for space, whitened in (("", False), (", whitened", True)):
            train, test = (fitter.vectors(head, part.tokens, whitened=whitened) for part in self.centred)
            learned, truth = self.centred[0].split.labels, self.centred[1].split.labels
            found[f"k-NN{space}"] = knn.predict(train, learned, test) == truth
            found[f"mAP{space}"] = _average_precision(test, truth)
            if row.agg == "cls":
                found[f"training{space}"] = leave_one_out(train, learned)
            if probe and (row.shipped or not whitened):
                found[f"linear probe{space}"] = linear_probe.predict(train, learned, test) == truth
            train, test = (fitter.vectors(head, part.tokens, whitened=whitened) for part in self.shifted)
            found[f"shifted{space}"] = (
                knn.predict(train, self.shifted[0].split.labels, test) == self.shifted[1].split.labels
            )
        return head, found

    def _norms(self, agg: str) -> dict[str, float]:
        """Return the leave-one-out k-NN accuracy on the training images by token norm."""
        aggregator = make_aggregator(agg, self.fitter.backbone.shape, {})
        part = self.centred[0]
        return {
            norm: round(100 * float(leave_one_out(vectors, part.split.labels).mean()), 2)
            for norm in get_args(TokenNorm)
            for vectors in [pool(aggregator, part.tokens, self.fitter.backbone, final=norm == "final").cpu().numpy()]
        }

    def _kinds(self) -> list[str]:
        return [kind_of(name, tuple(KINDS), 0) for name in self.shifted[1].split.names]

    def _parts(self, dataset: Dataset) -> tuple[Part, Part]:
        splits = (dataset.train, dataset.test)
        return tuple(Part(split, self.fitter.tokens(_sources(split), split.digest, "")) for split in splits)


def _average_precision(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    relevance = others_of_class(labels)
    return retrieve(vectors[relevance.queries], vectors, relevance.matches, relevance.ignored).average_precision


if __name__ == "__main__":
    main()
