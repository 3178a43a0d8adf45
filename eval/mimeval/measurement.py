"""Compute features in torch and engines, and measure scores and drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mimeval import drift as drifting
from mimeval import verdict
from mimeval.deployments import Deployment, OpenReferences, SkippedDeployment, reference_identity
from mimeval.errors import DataError
from mimeval.feature_store import FeatureStore, Table
from mimeval.images import Images
from mimeval.metrics import Metric, Scores, TrainingSet
from mimeval.models import Model
from mimeval.report import DeploymentDrift, Fitted, Sample
from mimeval.samples import draw_samples
from mimruntime.embedder import Embedder
from mimruntime.rows import CHUNK


@dataclass(slots=True, eq=False)
class Measurements:
    """All measurements so far; scores are keyed by model, deployment, metric and side."""

    scores: dict[tuple[str, str, str, Fitted], np.ndarray] = field(default_factory=dict)
    drifts: list[DeploymentDrift] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    reasons: list[verdict.Reason] = field(default_factory=list)
    skipped: list[SkippedDeployment] = field(default_factory=list)


def torch_tables(
    models: Sequence[Model], images: Images, open_references: OpenReferences, store: FeatureStore
) -> dict[str, tuple[Table | None, Table]]:
    """Return torch's features of training and test images by embedding space, in one pass per preprocessing."""
    tables: dict[str, tuple[Table | None, Table]] = {}
    firsts = [model.artifacts[0] for model in models]
    for spec in dict.fromkeys(artifact.manifest.preprocess for artifact in firsts):
        group = [artifact for artifact in firsts if artifact.manifest.preprocess == spec]
        engines = open_references(group)
        embedders = [
            Embedder(artifact, engine, batch_size=CHUNK) for artifact, engine in zip(group, engines, strict=True)
        ]
        try:
            jobs = [
                (embedder, reference_identity(embedder.artifact, engine))
                for embedder, engine in zip(embedders, engines, strict=True)
            ]
            train = images.train_tables(store, jobs, "torch")
            test = images.test_tables(store, jobs, "torch")
        finally:
            for embedder in embedders:
                embedder.close()
        tables |= {
            artifact.manifest.embedding_space: pair
            for artifact, pair in zip(group, zip(train, test, strict=True), strict=True)
        }
    for train_table, test_table in tables.values():
        images.drop_unreadable(test_table, train_table)
    return tables


def measure(
    deployment: Deployment,
    model: Model,
    torch: tuple[TrainingSet, Table],
    images: Images,
    store: FeatureStore,
    metrics: dict[str, Metric],
    found: Measurements,
    *,
    own: bool,
) -> None:
    """Add scores, drift and samples of one deployment to `found`; vectors that are not finite make the verdict fail."""
    label = f"{model.title}, {deployment.name}"
    jobs = [(deployment.embedder, deployment.identity)]
    table = images.test_tables(store, jobs, label, deployed=True)[0]
    known, test = torch
    _refuse_unread(table, images.bad_test, label)
    rows = images.test_rows(deployed=True)
    if text := _not_finite(table, rows, [images.dataset.test.names[row] for row in images.order]):
        found.reasons.append(("fail", f"{model.title} on {deployment.name}: {text}"))
        return
    key = (model.title, deployment.name)
    for name, values in score_tables(metrics, images, known, test.embedding, table.embedding, deployed=True).items():
        found.scores[*key, name, "torch"] = values
    train = images.train_tables(store, jobs, label)[0] if own else None
    if train is not None and images.dataset.train is not None:
        _refuse_unread(train, images.bad_train, label)
        if text := _not_finite(train, images.train_rows(), images.dataset.train.names):
            found.reasons.append(("fail", f"{model.title} on {deployment.name}, training: {text}"))
            own, train = False, None
    own_known = images.known(train)
    # Images that search each other need no training images.
    free = {name: metric for name, metric in metrics.items() if metric.ranks and not images.searches_train}
    kinds = metrics if own else free
    for name, values in score_tables(kinds, images, own_known, table.embedding, table.embedding, deployed=True).items():
        found.scores[*key, name, "own"] = values
    selections = None
    if table.selection is not None and test.selection is not None:
        selections = test.selection[rows], table.selection[rows]
    measured = drifting.measure(test.embedding[rows], table.embedding[rows], selections)
    problem = drifting.too_far(measured, deployment.precision)
    found.drifts.append(
        DeploymentDrift(model=model.title, deployment=deployment.name, drift=measured, problem=problem, rate=table.rate)
    )
    if table.selection is not None:
        found.samples += draw_samples(deployment, model.title, table.selection, images)


def score_tables(
    metrics: dict[str, Metric],
    images: Images,
    known: TrainingSet,
    gallery: np.ndarray,
    test: np.ndarray,
    *,
    deployed: bool,
) -> Scores:
    """Return the scores of all metrics on the readable test images."""
    rows = images.test_rows(deployed=deployed)
    scores: Scores = {}
    for metric in metrics.values():
        # A ranking depends on the gallery, so torch also searches only the images that engines see.
        asked = images.test_rows(deployed=True) if metric.ranks else rows
        searched = known.features if images.searches_train else gallery[asked]
        scores |= metric.score(images.task(asked), known, searched, test[asked])
    return scores


def _refuse_unread(table: Table, bad: np.ndarray, label: str) -> None:
    """Raise DataError if an engine could not read images that torch has read; their rows are zeros, not vectors."""
    if lost := [text for row, text in table.errors.items() if not bad[row]]:
        raise DataError(f"{label}: {len(lost)} images that torch has read could not be read, {lost[0]}; run it again")


def _not_finite(table: Table, rows: np.ndarray, names: Sequence[str]) -> str | None:
    """Return a sentence about vectors in `rows` with NaN or infinity, or None."""
    broken = rows[~np.isfinite(table.embedding[rows]).all(axis=1)]
    if not len(broken):
        return None
    return f"vectors of {len(broken)} of {len(rows)} images hold NaN or infinity, first that of {names[broken[0]]}"
