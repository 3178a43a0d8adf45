"""Compare two deployed artifacts on the same images, with classifiers fitted on the features of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mimeval.baselines import compare_norms
from mimeval.datasets import Dataset
from mimeval.deployments import Deployment, OpenReferences, open_embedder
from mimeval.feature_store import FeatureStore, Table
from mimeval.images import choose_images
from mimeval.metrics import Scores, check_measured, decisive, find_metrics
from mimeval.statistics import Interval, McNemar, mcnemar, mean_interval, paired_difference
from mimeval.summary import compared
from mimruntime.artifact import Artifact
from mimruntime.errors import MimError


@dataclass(frozen=True, slots=True)
class Row:
    """The scores of both artifacts by one metric; `difference` is second minus first, paired over images."""

    metric: str
    first: Interval
    second: Interval
    difference: Interval
    mcnemar: McNemar | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of two artifacts on the same images.

    Attributes:
        dataset: name of the data set.
        images: number of readable test images.
        engines: the engines of the two.
        rows: one per metric.
        notes: notes on the data for the reader.
        names: display names of the two.
        metric: the metric that decides the verdict.
        stronger: a sentence for each [cls] of the two that is shown to be weaker than with the other token norm.

    """

    dataset: str
    images: int
    engines: tuple[str, str]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    names: tuple[str, str] = ("A", "B")
    metric: str = ""
    stronger: tuple[str, ...] = ()

    @property
    def deciding(self) -> Row:
        """The row that decides the verdict."""
        return next((row for row in self.rows if row.metric == self.metric), self.rows[0])

    def verdict(self) -> str:
        """Say in a few sentences which is better by the deciding metric, and if a [cls] is not the strongest."""
        return " ".join((self._better(), *self.stronger))

    def _better(self) -> str:
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
            return "As estimated, no number of images would decide it."
        needed = self.images * ((change.value - change.low) / change.value) ** 2
        return f"As estimated, about {math.ceil(needed):,} images would decide it; {self.images:,} were seen."


def compare_artifacts(
    first: Artifact,
    second: Artifact,
    dataset: Dataset,
    *,
    engine: str = "auto",
    metrics: tuple[str, ...] = (),
    store: FeatureStore,
    seed: int = 0,
    open_references: OpenReferences | None = None,
) -> Comparison:
    """Compare `second` with `first`, and a [cls] among them with the same [cls] of the other token norm.

    Args:
        first: an artifact.
        second: another, of any backbone.
        dataset: labelled images, or queries with their correct results.
        engine: a name in `mimruntime.engines.ENGINES`, or "auto".
        metrics: names in `METRICS`; if empty, all that the data set allows.
        store: the store of features.
        seed: seed of the image order and the bootstrap.
        open_references: opens torch models; None leaves out the other token norm.

    Raises:
        MimError: any failure, in one line.

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
    weaker, untried = _weaker_norms((first, second), dataset, open_references, store, seed)
    return Comparison(
        dataset.name,
        len(rows),
        (engines[0], engines[1]),
        tuple(_row(name, scores[0][name], scores[1][name], seed) for name in scores[0]),
        (*dataset.notes, *images.notes, *untried),
        _names(first, second),
        decisive(scores[0], chosen)[0],
        weaker,
    )


def _weaker_norms(
    artifacts: tuple[Artifact, Artifact],
    dataset: Dataset,
    open_references: OpenReferences | None,
    store: FeatureStore,
    seed: int,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sentences on baselines shown to be weaker than with the other token norm, and notes on the others."""
    if open_references is None:
        return (), ()
    try:
        found = compare_norms(artifacts, dataset, open_references, store, seed=seed)
    except MimError as error:
        return (), (f"the other token norm of [cls] was not tried: {error}",)
    shown = tuple(
        f"But {one.weaker} reads the weaker token norm: {one.sentence()}." for one in found if one.difference.low > 0
    )
    return shown, tuple(f"token norms: {one.sentence()}" for one in found if one.difference.low <= 0)


def _names(first: Artifact, second: Artifact) -> tuple[str, str]:
    """Return the artifacts' names, or their paths if the names are the same."""
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
