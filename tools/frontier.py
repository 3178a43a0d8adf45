"""Measure early selection: accuracy against images/s of rules, counts, smaller images and token merging.

    python tools/frontier.py ../shared/data/tiny-imagenet-64.zip --model mae-tiny --model mae-small

It does what is missing in the results, row by row and the most important first, and may be stopped at any time. `--phase`
does one part alone:

- accuracy: vectors, k-NN and a linear probe of each row, on `--device`.
- graphs: exports what `speed` needs.
- speed: images/s of every graph in two engines, in turn with the full encoder; it needs a quiet machine.
- page: writes the tables and the plot from the results.

Results are stored in `--results`; pixels, vectors, learned scorers and graphs in `--work`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aggregator_tables
import click
import numpy as np
from frontier_page import TRAINING, write_page
from frontier_rows import CLS, ENCODERS, ROWS, Row
from frontier_speed import BATCH, Stopwatch, engine_titles
from frontier_vectors import VectorStore
from measure_aggregators import beginning

from mimeval import knn, linear_probe
from mimeval.accelerator import accelerated
from mimeval.cli.options import DEVICE
from mimeval.datasets import Dataset, open_dataset
from mimexport.device import choose_device, describe_device
from mimexport.gpu_products import products_on
from mimexport.loading import load_any
from mimruntime.cpus import describe_cpu

PHASES = ("accuracy", "graphs", "speed", "page")


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--model", "models", multiple=True, required=True, help="Embedded backbones.")
@click.option(
    "--phase", "phases", multiple=True, type=click.Choice(PHASES), default=PHASES, help="Part to do.  [default: all]"
)
@click.option("--row", "titles", multiple=True, help="Measure only these rows, again; keep the others.")
@click.option("--training", default=10_000, show_default=True, help="Number of training images.")
@click.option("--images", default=10_000, show_default=True, help="Number of test images.")
@DEVICE
@click.option("--pairs", default=9, show_default=True, help="Number of runs in turn with the full encoder.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/frontier"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("docs/results"), show_default=True)
def main(
    archive: Path, models: tuple[str, ...], phases: tuple[str, ...], titles: tuple[str, ...], training: int, images: int,
    device: str, pairs: int, work: Path, results: Path,
) -> None:  # fmt: skip
    """Measure rows that are missing in the results, and write the page."""
    if unknown := set(titles) - {row.title for row in ROWS}:
        raise click.BadParameter(f"no row {', '.join(sorted(unknown))}; there are: {', '.join(r.title for r in ROWS)}")
    everything = [Results(results / f"early-selection-{model}.json", model, titles) for model in models]
    if "accuracy" in phases:
        data = beginning(open_dataset(f"zip:{archive}", cache=work), training, images)
        benches = [(one, VectorStore(one.model, choose_device(device), work)) for one in everything]
        for encoder in ENCODERS:
            for stored, vectors in benches:
                measure_accuracy(stored, vectors, data, encoder)
    for stored in everything:
        watch = Stopwatch(stored.model, work)
        if "graphs" in phases:
            for row in stored.missing("rates"):
                watch.graph(row)
        if "speed" in phases:
            stored.head |= {"machine": describe_cpu(), "engines": engine_titles(), "batch": BATCH}
            for row in stored.missing("rates"):
                started = time.perf_counter()
                stored.add(row, {"rates": watch.rates(row, pairs)})
                click.echo(f"{stored.model} {row.title}: speed, {time.perf_counter() - started:.0f} s", err=True)
    if "page" in phases:
        write_page(results)


class Results:
    """The results of one backbone, written after each row.

    Attributes:
        model: its name.
        head: what holds for all rows, and the rows.

    """

    def __init__(self, file: Path, model: str, titles: tuple[str, ...]) -> None:
        self._file, self._titles, self.model = file, titles, model
        self._measured: set[tuple[str, str]] = set()
        self.head: dict[str, Any] = aggregator_tables.read(file) if file.exists() else {"model": model, "rows": {}}

    def begin(self, sizes: list[int], torch: str) -> None:
        """Set the numbers of images and what computes; take [cls] from measure_aggregators.py, if it has the same images.

        Raises:
            UsageError: the results are of other numbers of images.

        """
        if self.head.setdefault("sizes", sizes) != sizes:
            raise click.UsageError(f"the results are of {self.head['sizes']} images; {sizes} were asked for")
        self.head["torch"] = torch
        file = aggregator_tables.PAGE.parent / f"aggregators-{self.model}.json"
        if not file.exists() or self._titles:
            return
        known = aggregator_tables.read(file)
        if known["sizes"]["centred"] == sizes and known["weights_sha256"] == load_any(self.model).sha256:
            for row in self.missing(TRAINING):
                found = known["rows"].get(f"`cls --token-norm {row.norm}`")
                if row in CLS and found:
                    names = {"k-NN": "k-NN", "linear probe": "linear probe", "training": TRAINING}
                    self.add(row, {name: found[key] for key, name in names.items() if key in found})

    def missing(self, what: str) -> list[Row]:
        """Return the rows to measure: those asked for by title, else those without `what`."""
        rows = [row for row in ROWS if not self._titles or row.title in self._titles]
        if what == "rates":  # the speed of [cls] is nobody's question, and a learned rule has that of another row
            rows = [row for row in rows if row not in CLS and row.timed == row]
        return [
            row for row in rows
            if (row.title, what) not in self._measured
            and (self._titles or what not in self.head["rows"].get(row.title, {}))
        ]  # fmt: skip

    def add(self, row: Row, found: dict[str, Any]) -> None:
        """Store what was found of a row."""
        known = self.head["rows"].setdefault(row.title, {"operations": self._operations(row)})
        known |= found
        self._measured |= {(row.title, what) for what in found}
        aggregator_tables.write(self.head, self._file)

    def _operations(self, row: Row) -> float:
        """Return the share of the full encoder's operations in blocks that a row needs."""
        model: Any = load_any(self.model).model
        depth, whole = len(model.blocks), model.patch_embed.grid_size[0] ** 2
        patches = whole if row.size is None else (row.size // model.patch_embed.patch_size[0]) ** 2

        def need(patches: int) -> int:
            tokens = 1 + patches
            return 24 * tokens * model.embed_dim**2 + 4 * tokens**2 * model.embed_dim

        return sum(map(need, row.tokens(patches, depth))) / (depth * need(whole))


def measure_accuracy(stored: Results, vectors: VectorStore, data: Dataset, rows: Sequence[Row]) -> None:
    """Compute the vectors and the scores of those rows of one encoder that are missing."""
    if data.train is None:
        raise click.UsageError(f"{data.name} has no images to learn from")
    train, test = data.train, data.test
    stored.begin([len(train), len(test)], f"{vectors.precisions}, {describe_device(vectors.device)}")
    missing = [row for row in stored.missing(TRAINING) if row in rows]
    started = time.perf_counter()
    vectors.compute(missing, (train, test), train)
    for row in missing:
        with accelerated(products_on(vectors.device)):
            found = score(vectors.vectors(row, train), train.labels, vectors.vectors(row, test), test.labels)
        stored.add(row, found)
        told = f"{aggregator_tables.summary(found)}, {time.perf_counter() - started:.0f} s"
        click.echo(f"{stored.model} {row.title}: {told}", err=True)
        started = time.perf_counter()


def score(train: np.ndarray, learned: np.ndarray, test: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return the correctness of every test image, bool (m,), and of every training image by the others, bool (n,)."""
    return {
        "k-NN": knn.predict(train, learned, test) == truth,
        "linear probe": linear_probe.predict(train, learned, test) == truth,
        TRAINING: knn.leave_one_out(train, learned) == learned,
    }


if __name__ == "__main__":
    main()
