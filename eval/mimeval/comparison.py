"""Two artifacts on the same images, each as it is deployed, with classifiers fitted on its own features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mimeval.datasets import Dataset
from mimeval.deployments import Deployment, open_embedder
from mimeval.feature_store import FeatureStore, Table
from mimeval.images import choose_images
from mimeval.metrics import Scores, check_measured, decisive, find_metrics
from mimeval.statistics import Interval, McNemar, mcnemar, mean_interval, paired_difference
from mimeval.summary import compared
from mimruntime.artifact import Artifact


@dataclass(frozen=True, slots=True)
class Row:
    """Both artifacts by one metric; `difference` is second minus first, paired over images."""

    metric: str
    first: Interval
    second: Interval
    difference: Interval
    mcnemar: McNemar | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two artifacts on the same images.

    Attributes:
        dataset: its name.
        images: test images that could be read.
        engines: what ran the two.
        rows: one a metric.
        notes: what a reader must know of the data.
        names: of the two, for people.
        metric: the verdict rests on it.

    """

    dataset: str
    images: int
    engines: tuple[str, str]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    names: tuple[str, str] = ("A", "B")
    metric: str = ""

    @property
    def deciding(self) -> Row:
        """The row that a verdict rests on."""
        return next((row for row in self.rows if row.metric == self.metric), self.rows[0])

    def verdict(self) -> str:
        """Return which is better in a sentence or two, by the deciding metric."""
        row = self.deciding
        first, second = self.names
        change, better, worse = row.difference, second, first
        accuracies = (row.second, row.first)
        if change.value < 0:
            better, worse, accuracies = first, second, (row.first, row.second)
            change = Interval(-change.value, -change.high, -change.low)
        found = compared(row.metric, better, worse, accuracies, change)
        if change.low > 0:
            return f"{better} is better. {found}"
        return f"No difference is shown. {found} {self._needed(change)}"

    def _needed(self, change: Interval) -> str:
        if change.value <= 0:
            return "No number of images would decide it as it looks."
        needed = self.images * ((change.value - change.low) / change.value) ** 2
        return f"About {math.ceil(needed):,} images would decide it as it looks; {self.images:,} were seen."


def compare_artifacts(
    first: Artifact,
    second: Artifact,
    dataset: Dataset,
    *,
    engine: str = "auto",
    metrics: tuple[str, ...] = (),
    store: FeatureStore,
    seed: int = 0,
) -> Comparison:
    """Return how `second` does against `first`.

    Args:
        first: an artifact.
        second: another, of any backbone.
        dataset: labelled images, or queries with what they ought to find.
        engine: a name of `mimruntime.engines.ENGINES`, or "auto".
        metrics: names in `METRICS`; none stands for all that the data set allows.
        store: where features are kept.
        seed: of the order and the bootstrap.

    Raises:
        MimError: of any kind.

    """
    chosen = find_metrics(metrics, dataset)
    images = choose_images(dataset, None, seed=seed)
    tables: list[tuple[Table | None, Table]] = []
    engines = []
    for artifact in (first, second):
        with open_embedder(artifact, engine) as embedder:
            about = embedder.describe()
            engines.append(f"{about.engine} {about.precision} on {about.provider}")
            jobs = [(embedder, Deployment(artifact, embedder, about.engine).identity)]
            train = images.train_tables(store, jobs, artifact.manifest.name)[0]
            tables.append((train, images.test_tables(store, jobs, artifact.manifest.name)[0]))
    for train, test in tables:
        images.drop_unreadable(test, train)
    images.drop_unsuited(chosen, metrics)
    scores: list[Scores] = [{}, {}]
    rows = images.test_rows(deployed=False)
    for found, (train, test) in zip(scores, tables, strict=True):
        known = images.known(train)
        searched = known.features if images.searches_train else None
        for metric in chosen.values():
            found.update(metric.score(images.task(rows), known, searched, test.embedding[rows]))
    check_measured(scores[0], dataset)
    return Comparison(
        dataset.name,
        len(rows),
        (engines[0], engines[1]),
        tuple(_row(name, scores[0][name], scores[1][name], seed) for name in scores[0]),
        (*dataset.notes, *images.notes),
        _names(first, second),
        decisive(scores[0], chosen)[0],
    )


def _names(first: Artifact, second: Artifact) -> tuple[str, str]:
    """Return the artifacts' names; their paths where these are the same."""
    names = first.manifest.name, second.manifest.name
    return names if names[0] != names[1] else (str(first.path), str(second.path))


def _row(metric: str, first: np.ndarray, second: np.ndarray, seed: int) -> Row:
    binary = first.dtype == np.bool_
    return Row(
        metric,
        mean_interval(first, seed=seed),
        mean_interval(second, seed=seed),
        paired_difference(second, first, seed=seed),
        mcnemar(first, second) if binary else None,
    )
