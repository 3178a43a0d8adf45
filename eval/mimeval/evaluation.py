"""Run an evaluation: the same images in torch and on every engine, then scores, gains, drift and verdict."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from mimeval import verdict
from mimeval.baselines import ON_TRAINING, BuildBaseline, Choice, choose, complete, leave_one_out, with_rivals
from mimeval.datasets import Dataset
from mimeval.deployments import EngineRequest, OpenReferences, deploy
from mimeval.errors import DataError
from mimeval.feature_store import FeatureStore
from mimeval.gains import gains_of
from mimeval.images import Images, choose_images
from mimeval.measurement import Measurements, measure, score_tables, torch_tables
from mimeval.metrics import Metric, TrainingSet, check_measured, decisive, find_metrics
from mimeval.models import Model, group_models, labels_of
from mimeval.report import TORCH, Example, Report, score
from mimeval.samples import draw_examples
from mimeval.statistics import MARGIN
from mimeval.stored import k_nn_correct
from mimruntime.artifact import Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """The extent of an evaluation, and its tolerance.

    Attributes:
        metrics: names in `METRICS`; if empty, all that the data set allows.
        deployed: largest number of test images on engines; torch uses all of them.
        own: also fit on each engine's own features of the training images.
        stored: names in `stored.WAYS`; k-NN with torch's training vectors in this stored form is judged like an engine.
        margin: the tolerated loss of gain.
        seed: seed of the image draw and of the bootstrap.

    """

    metrics: tuple[str, ...] = ()
    deployed: int | None = None
    own: bool = True
    stored: tuple[str, ...] = ()
    margin: float = MARGIN
    seed: int = 0


def evaluate(
    artifacts: Sequence[Artifact],
    baselines: Sequence[Artifact],
    dataset: Dataset,
    wanted: Sequence[EngineRequest],
    *,
    open_references: OpenReferences,
    store: FeatureStore,
    options: EvalOptions = EvalOptions(),
    fixed: Collection[str] = (),
    build_baseline: BuildBaseline | None = None,
) -> Report:
    """Evaluate `artifacts` and `baselines` on `dataset`, in torch and on every engine of `wanted`.

    Args:
        artifacts: artifacts whose gain is judged, in any precision.
        baselines: artifacts from which gains are counted, one per backbone and precision; they may also be in `artifacts`.
            Each is measured before and after the final norm, and the stronger counts.
        dataset: labelled images, or queries with their correct results.
        wanted: the engines.
        open_references: opens the torch models.
        store: the store of features.
        options: the extent of the evaluation.
        fixed: embedding spaces of baselines that the user chose; they count even if they are the weaker.
        build_baseline: builds the stronger baseline if it is missing.

    Raises:
        MimError: any failure, in one line; computed features stay in the store.

    """
    metrics = find_metrics(options.metrics, dataset)
    models = group_models(artifacts, with_rivals(baselines))
    images = choose_images(dataset, options.deployed, seed=options.seed)
    torch = torch_tables(models, images, open_references, store)
    images.drop_unsuited(metrics, options.metrics)
    found = Measurements()
    known = {space: images.known(train) for space, (train, _) in torch.items()}
    for done, model in enumerate(models):
        store.progress("scores of torch", done, len(models))  # a linear probe takes minutes
        test = torch[model.space][1].embedding
        for name, values in score_tables(metrics, images, known[model.space], test, test, deployed=False).items():
            found.scores[model.title, TORCH, name, "torch"] = values
    choice = _choose(models, known, images, metrics, found, options.seed, fixed)
    found.reasons += choice.reasons
    images.notes += choice.notes
    for model in choice.models:
        if model.judged or model.baseline is None:  # not the weaker of two baselines
            test = torch[model.space][1].embedding
            _add_stored(model, known[model.space], test, images, metrics, found, options.stored)
    models = complete(choice.models, build_baseline, found.reasons)
    every = [artifact for model in models for artifact in model.artifacts]
    by_space = {model.space: model for model in models}
    for deployment in deploy(every, wanted, found.skipped, open_references):
        model = by_space[deployment.artifact.manifest.embedding_space]
        reference = known[model.space], torch[model.space][1]
        measure(deployment, model, reference, images, store, metrics, found, own=options.own)
    return _report(choice, images, metrics, found, options)


def _add_stored(
    model: Model,
    known: TrainingSet,
    test: np.ndarray,
    images: Images,
    metrics: dict[str, Metric],
    found: Measurements,
    ways: tuple[str, ...],
) -> None:
    if not ways:
        return
    if "knn" not in metrics or images.dataset.relevance:
        raise DataError("a stored precision is judged by k-NN, which needs labelled images and knn in --metric")
    rows = images.test_rows(deployed=False)
    truth = images.task(rows).test_labels
    for way, right in k_nn_correct(ways, known.features, known.labels, test[rows], truth).items():
        found.scores[model.title, f"stored {way}", "k-NN", "torch"] = right


def _choose(
    models: Sequence[Model],
    known: dict[str, TrainingSet],
    images: Images,
    metrics: dict[str, Metric],
    found: Measurements,
    seed: int,
    fixed: Collection[str],
) -> Choice:
    """Choose the baselines by training images, or by test images if training images have no labels."""
    candidates = [model for model in models if model.baseline is None]
    labelled = next(iter(known.values())).labels
    if len(np.unique(labelled)) > 1 and not images.dataset.relevance:
        scores = {m.title: leave_one_out(known[m.space].features, labelled, seed=seed) for m in candidates}
        return choose(models, scores, metric="k-NN", on=ON_TRAINING, fixed=fixed, seed=seed)
    measured = {name for _, _, name, _ in found.scores}
    check_measured(measured, images.dataset)
    deciding, _ = decisive(measured, metrics)
    scores = {model.title: found.scores[model.title, TORCH, deciding, "torch"] for model in candidates}
    return choose(models, scores, metric=deciding, on="test images", fixed=fixed, seed=seed)


def _report(
    choice: Choice, images: Images, metrics: dict[str, Metric], found: Measurements, options: EvalOptions
) -> Report:
    dataset, models = images.dataset, choice.models
    measured = {metric for _, _, metric, _ in found.scores}
    check_measured(measured, dataset)
    deciding, metric = decisive(measured, metrics)
    gains = gains_of(models, found, deciding, margin=options.margin, seed=options.seed)
    classes = len(dataset.classes)
    weights, chance = images.weights(metric), images.chance(metric, deciding)
    labels = [
        reason
        for model in models
        if model.baseline is None
        for reason in verdict.at_chance(
            found.scores[model.title, TORCH, deciding, "torch"] * weights, chance, weights.max()
        )
    ]
    if not found.drifts and not found.reasons:
        why = "; ".join(sorted({f"{skip.deployment}: {skip.reason}" for skip in found.skipped}))
        raise DataError(f"no engine could run any of the artifacts: {why or 'none was asked for'}")
    judged = {gain.model for gain in gains if gain.decides}
    unjudged = [model.title for model in models if model.judged and model.title not in judged]
    nowhere: list[verdict.Reason] = [("undecided", f"{title} was judged on no engine") for title in unjudged]
    outcome, reasons = verdict.conclude(gains, found.drifts, [*found.reasons, *labels, *nowhere])
    return Report(
        verdict=outcome,
        reasons=reasons,
        dataset=dataset.name,
        digest=images.digest,
        images={
            "torch": len(images.test_rows(deployed=False)),
            "engines": len(images.test_rows(deployed=True)),
            "training": images.training,
        },
        classes=classes,
        metric=deciding,
        margin=options.margin,
        seed=options.seed,
        names=images.names(),
        notes=[*dataset.notes, *images.notes],
        skipped=found.skipped,
        baselines=choice.chosen,
        scores=[score(*key, values, seed=options.seed) for key, values in found.scores.items()],
        gains=gains,
        drifts=found.drifts,
        samples=found.samples,
        examples=_examples(models, found, deciding, images),
        labels=labels_of(models),
    )


def _examples(models: Sequence[Model], found: Measurements, deciding: str, images: Images) -> list[Example]:
    """Return images on which the first judged model and its baseline differ, if scores are right or wrong."""
    model = next((model for model in models if model.judged), None)
    if model is None or model.baseline is None or images.dataset.relevance:
        return []
    right, base = (found.scores[title, TORCH, deciding, "torch"] for title in (model.title, model.baseline))
    return draw_examples(model.title, model.baseline, right, base, images) if right.dtype == np.bool_ else []
