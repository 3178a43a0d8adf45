"""The flow: the same images through torch and every engine, scores, gains, drift, verdict."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from mimeval import drift as drifting
from mimeval import verdict
from mimeval.baselines import BuildBaseline, Choice, choose, complete, leave_one_out, with_rivals
from mimeval.datasets import Dataset
from mimeval.deployments import Deployment, OpenReferences, Skipped, Wanted, deploy, reference_identity
from mimeval.errors import DataError
from mimeval.features import CHUNK, FeatureStore, Table
from mimeval.images import Images, choose_images
from mimeval.metrics import Metric, Scores, TrainingSet, check_measured, decisive, find_metrics
from mimeval.models import Model, group_models
from mimeval.report import TORCH, Drifted, Fitted, Gain, Report, Sample, score
from mimeval.samples import draw_samples
from mimeval.statistics import MARGIN, judge_gain, mcnemar
from mimruntime.artifact import Artifact
from mimruntime.embedder import Embedder


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """How much is measured, and what is tolerated.

    Attributes:
        metrics: names in `METRICS`; none stands for all that the data set allows.
        deployed: test images that engines see, at most; torch sees all of them.
        own: also fit on each engine's own features of the training images.
        margin: the loss of gain that is tolerated.
        seed: of the image draw and of the bootstrap.

    """

    metrics: tuple[str, ...] = ()
    deployed: int | None = None
    own: bool = True
    margin: float = MARGIN
    seed: int = 0


@dataclass(slots=True, eq=False)
class Measurements:
    """What was measured so far; scores by model, deployment, metric and side."""

    scores: dict[tuple[str, str, str, Fitted], np.ndarray] = field(default_factory=dict)
    drifts: list[Drifted] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    reasons: list[verdict.Reason] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def evaluate(
    artifacts: Sequence[Artifact],
    baselines: Sequence[Artifact],
    dataset: Dataset,
    wanted: Sequence[Wanted],
    *,
    open_references: OpenReferences,
    store: FeatureStore,
    options: EvalOptions = EvalOptions(),
    fixed: Collection[str] = (),
    build_baseline: BuildBaseline | None = None,
) -> Report:
    """Evaluate `artifacts` and `baselines` on `dataset`, in torch and in every engine of `wanted`.

    Args:
        artifacts: whose gain is judged, in any precisions.
        baselines: what gains are counted from, one for each backbone and precision; may also be among `artifacts`. Each is
            measured before and after the final norm, and the stronger counts.
        dataset: labelled images, or queries with what they ought to find.
        wanted: engines.
        open_references: gives the torch models.
        store: where features are kept.
        options: how much is measured.
        fixed: embedding spaces of baselines that were asked for: they count even where they are the weaker.
        build_baseline: makes the stronger one where it is not at hand.

    Raises:
        MimError: of any kind, each with one line; features that were computed are kept.

    """
    metrics = find_metrics(options.metrics, dataset)
    models = group_models(artifacts, with_rivals(baselines))
    images = choose_images(dataset, options.deployed, seed=options.seed)
    torch = _torch_tables(models, images, open_references, store)
    images.drop_unsuited(metrics, options.metrics)
    found = Measurements()
    known = {space: images.known(train) for space, (train, _) in torch.items()}
    for done, model in enumerate(models):
        store.progress("scores of torch", done, len(models))  # a linear probe takes minutes
        test = torch[model.space][1].embedding
        for name, values in _scores(metrics, images, known[model.space], test, test, deployed=False).items():
            found.scores[model.title, TORCH, name, "torch"] = values
    choice = _choose(models, known, images, metrics, found, options.seed, fixed)
    found.reasons += choice.reasons
    images.notes += choice.notes
    models = complete(choice.models, build_baseline, found.reasons)
    every = [artifact for model in models for artifact in model.artifacts]
    by_space = {model.space: model for model in models}
    for deployment in deploy(every, wanted, found.skipped, open_references):
        model = by_space[deployment.artifact.manifest.embedding_space]
        reference = known[model.space], torch[model.space][1]
        _measure(deployment, model, reference, images, store, metrics, found, own=options.own)
    return _report(choice, images, metrics, found, options)


def _choose(
    models: Sequence[Model],
    known: dict[str, TrainingSet],
    images: Images,
    metrics: dict[str, Metric],
    found: Measurements,
    seed: int,
    fixed: Collection[str],
) -> Choice:
    """Choose the baselines by training images, or by those that are judged where training images have no labels."""
    candidates = [model for model in models if model.baseline is None]
    labelled = next(iter(known.values())).labels
    if len(np.unique(labelled)) > 1 and not images.dataset.relevance:
        scores = {m.title: leave_one_out(known[m.space].features, labelled, seed=seed) for m in candidates}
        on = "training images, each left out in turn"
        return choose(models, scores, metric="k-NN", on=on, fixed=fixed, seed=seed)
    measured = {name for _, _, name, _ in found.scores}
    check_measured(measured, images.dataset)
    deciding, _ = decisive(measured, metrics)
    scores = {model.title: found.scores[model.title, TORCH, deciding, "torch"] for model in candidates}
    return choose(models, scores, metric=deciding, on="test images", fixed=fixed, seed=seed)


def _torch_tables(
    models: Sequence[Model], images: Images, open_references: OpenReferences, store: FeatureStore
) -> dict[str, tuple[Table | None, Table]]:
    """Return torch's features of training and test images by embedding space; one pass for each preprocessing."""
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


def _measure(
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
    """Add scores and drift of one deployment."""
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
    for name, values in _scores(metrics, images, known, test.embedding, table.embedding, deployed=True).items():
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
    for name, values in _scores(kinds, images, own_known, table.embedding, table.embedding, deployed=True).items():
        found.scores[*key, name, "own"] = values
    selections = None
    if table.selection is not None and test.selection is not None:
        selections = test.selection[rows], table.selection[rows]
    measured = drifting.measure(test.embedding[rows], table.embedding[rows], selections)
    problem = drifting.too_far(measured, deployment.precision)
    found.drifts.append(
        Drifted(model=model.title, deployment=deployment.name, drift=measured, problem=problem, rate=table.rate)
    )
    if table.selection is not None:
        found.samples += draw_samples(deployment, model.title, table.selection, images)


def _refuse_unread(table: Table, bad: np.ndarray, label: str) -> None:
    """Raise DataError where an engine could not read what torch has: rows of zeros would pass for its vectors."""
    if lost := [text for row, text in table.errors.items() if not bad[row]]:
        raise DataError(f"{label}: {len(lost)} images that torch has seen could not be read, {lost[0]}; run it again")


def _not_finite(table: Table, rows: np.ndarray, names: Sequence[str]) -> str | None:
    """Return a sentence on the vectors in `rows` that hold NaN or infinity, if there are any."""
    broken = rows[~np.isfinite(table.embedding[rows]).all(axis=1)]
    if not len(broken):
        return None
    return f"vectors of {len(broken)} of {len(rows)} images hold NaN or infinity, first that of {names[broken[0]]}"


def _scores(
    metrics: dict[str, Metric],
    images: Images,
    known: TrainingSet,
    gallery: np.ndarray,
    test: np.ndarray,
    *,
    deployed: bool,
) -> Scores:
    """Return every metric's scores of the readable test images."""
    rows = images.test_rows(deployed=deployed)
    scores: Scores = {}
    for metric in metrics.values():
        # A ranking depends on what is ranked, so torch, too, searches the images that engines see.
        asked = images.test_rows(deployed=True) if metric.ranks else rows
        searched = known.features if images.searches_train else gallery[asked]
        scores |= metric.score(images.task(asked), known, searched, test[asked])
    return scores


def _report(
    choice: Choice, images: Images, metrics: dict[str, Metric], found: Measurements, options: EvalOptions
) -> Report:
    dataset, models = images.dataset, choice.models
    measured = {metric for _, _, metric, _ in found.scores}
    check_measured(measured, dataset)
    deciding, metric = decisive(measured, metrics)
    gains = list(_gains(models, found, deciding, options))
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
    )


def _gains(models: Sequence[Model], found: Measurements, deciding: str, options: EvalOptions) -> list[Gain]:
    titles = {model.title: model.baseline for model in models}
    rows = [key for key in found.scores if key[1] != TORCH and key[2] == deciding and titles[key[0]] is not None]
    gains = []
    for (title, deployment, metric, fitted), values in found.scores.items():
        baseline = titles[title]
        if deployment == TORCH or baseline is None:
            continue
        other = found.scores.get((baseline, deployment, metric, fitted))
        if other is None:
            found.skipped.append(
                Skipped(title, deployment, f"no gain in {metric}: its baseline {baseline} did not run there", "refused")
            )
            continue
        reference = found.scores[title, TORCH, metric, "torch"]
        reference_baseline = found.scores[baseline, TORCH, metric, "torch"]
        count = len(values)
        judged = judge_gain(
            reference[:count],
            reference_baseline[:count],
            values,
            other,
            margin=options.margin,
            seed=options.seed,
            established_on=(reference, reference_baseline),
            rows=len(rows) if metric == deciding else 1,
        )
        gains.append(
            Gain(
                model=title,
                baseline=baseline,
                deployment=deployment,
                metric=metric,
                fitted=fitted,
                found=judged,
                mcnemar=mcnemar(values, reference[:count]) if values.dtype == np.bool_ else None,
                decides=metric == deciding,
            )
        )
    return gains
