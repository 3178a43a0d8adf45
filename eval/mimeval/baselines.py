"""Choose the baseline for gains: the stronger of [cls] before and after the final norm, measured on training images.

On the published MAE ViT-B the norm alone changes k-NN by 19 points, more than any aggregator, so a gain over the weaker
[cls] means nothing. Both are measured in torch; the stronger one runs on the engines. Without [cls] the mean is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from mimeval import knn
from mimeval.datasets import Dataset, Split
from mimeval.datasets.subset import balanced
from mimeval.deployments import OpenReferences, reference_identity
from mimeval.feature_store import FeatureStore
from mimeval.models import BASELINES, Model
from mimeval.report import BaselineChoice
from mimeval.statistics import mean_interval, paired_difference
from mimeval.verdict import Reason
from mimruntime.artifact import Artifact
from mimruntime.embedder import Embedder
from mimruntime.errors import MimError, OptionError
from mimruntime.manifest import TokenNorm, embedding_space
from mimruntime.rows import CHUNK

JUDGED_BY = 10_000
"""Largest number of training images used for the choice."""
ON_TRAINING = "training images, each left out in turn"

BuildBaseline = Callable[[Artifact, TokenNorm | None], Artifact]
"""Function that builds the baseline of an artifact's backbone, size and precision with a token norm; None: the better one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The models with their baselines, and how the baselines were chosen.

    Attributes:
        models: all models; baselines that were not chosen are included but not judged.
        chosen: one record per pair of candidates.
        reasons: contributions to the verdict.
        notes: notes for the reader.

    """

    models: list[Model]
    chosen: list[BaselineChoice]
    reasons: list[Reason]
    notes: list[str]


def with_rivals(baselines: Sequence[Artifact]) -> list[Artifact]:
    """Return `baselines`, and for each the same with the other token norm (a manifest without files), unless present.

    A whitened baseline has no counterpart, because its whitening was fitted on tokens of one norm.
    """
    known = {artifact.manifest.embedding_space for artifact in baselines}
    rivals: dict[str, Artifact] = {}
    for artifact in baselines:
        manifest = artifact.manifest
        usual = BASELINES[0] if manifest.backbone.reads_cls else BASELINES[1]
        if manifest.embedding.whitening is None and manifest.aggregator.name == usual:
            rival = other_norm(artifact)
            rivals.setdefault(rival.manifest.embedding_space, rival)  # named for the first, not for its last precision
    return [*baselines, *(rival for space, rival in rivals.items() if space not in known)]


def choose(
    models: Sequence[Model],
    scores: Mapping[str, np.ndarray],
    *,
    metric: str,
    on: str,
    fixed: Collection[str] = (),
    seed: int = 0,
) -> Choice:
    """Return the models; the baseline of each is the stronger candidate of its family.

    Args:
        models: the result of `group_models`.
        scores: scores per image of each candidate, by title.
        metric: name of the metric, for display.
        on: description of the images, for display.
        fixed: embedding spaces given as baseline; they stay the baseline, and the result says if they are weaker.
        seed: seed of the bootstrap.

    """
    families: dict[object, list[Model]] = {}
    for model in models:
        if model.baseline is None:
            families.setdefault(model.family, []).append(model)
    winners: dict[object, Model] = {family: found[0] for family, found in families.items()}
    choice = Choice([], [], [], [])
    for family, found in families.items():
        if len(found) < 2:
            continue
        better, worse = sorted(found, key=lambda model: -float(scores[model.title].mean()))
        record = _compared({title: scores[title] for title in (better.title, worse.title)}, metric, on, seed)
        choice.chosen.append(record)
        winners[family] = better
        if worse.space in fixed:
            winners[family] = worse
            text = f"gains are counted from {worse.title}, the weaker of two baselines: {record.sentence()}"
            if record.difference.low > 0:
                choice.reasons.append(("fail", text))
            else:
                choice.notes.append(text)
    for model in models:
        winner = winners[model.family]
        lost = model.baseline is None and model is not winner
        choice.models.append(
            replace(model, baseline=None if model is winner else winner.title, judged=model.judged and not lost)
        )
    choice.models.sort(key=lambda model: model.baseline is not None)
    return choice


def compare_norms(
    artifacts: Sequence[Artifact],
    dataset: Dataset,
    open_references: OpenReferences,
    store: FeatureStore,
    *,
    seed: int = 0,
) -> list[BaselineChoice]:
    """Return a record for each baseline among `artifacts` that another token norm makes stronger on training images.

    Both norms are measured in torch on up to `JUDGED_BY` training images. The list is empty if these have no labels.

    Args:
        artifacts: artifacts; those of other aggregators, whitened ones and both norms of one backbone are skipped.
        dataset: provides the training images.
        open_references: opens torch models.
        store: stores features.
        seed: seed of the sample of images and of the bootstrap.

    Raises:
        MimError: the torch models cannot be opened.

    """
    train, given = dataset.train, {artifact.manifest.embedding_space for artifact in artifacts}
    if train is None or dataset.relevance or len(np.unique(train.labels)) < 2:
        return []
    part = train.take(balanced(train, JUDGED_BY, seed))
    pairs = [with_rivals([artifact]) for artifact in artifacts if artifact.manifest.keep is None]
    found = []
    for pair in pairs:
        if len(pair) < 2 or pair[1].manifest.embedding_space in given:
            continue
        scores = _leave_one_out_in_torch(pair, part, open_references, store)
        mine, other = scores.values()
        if other.mean() > mine.mean():
            ordered = dict(reversed(scores.items()))
            found.append(_compared(ordered, "k-NN", ON_TRAINING, seed))
    return found


def _leave_one_out_in_torch(
    artifacts: Sequence[Artifact], part: Split, open_references: OpenReferences, store: FeatureStore
) -> dict[str, np.ndarray]:
    """Return whether each training image is classified correctly, (n,), by name of the artifact."""
    with contextlib.ExitStack() as stack:
        jobs = []
        for artifact, engine in zip(artifacts, open_references(artifacts), strict=True):
            embedder = stack.enter_context(Embedder(artifact, engine, batch_size=CHUNK))
            jobs.append((embedder, f"{reference_identity(artifact, engine)} {part.digest}"))
        tables = store.tables(jobs, part, np.arange(len(part)), "token norms of [cls]")
    readable = np.array([row for row in range(len(part)) if row not in tables[0].errors])
    return {
        artifact.manifest.name: leave_one_out(table.embedding[readable], part.labels[readable])
        for artifact, table in zip(artifacts, tables, strict=True)
    }


def _compared(scores: Mapping[str, np.ndarray], metric: str, on: str, seed: int) -> BaselineChoice:
    """Return the record of two baselines, the stronger first."""
    (stronger, better), (weaker, worse) = scores.items()
    return BaselineChoice(
        stronger=stronger, weaker=weaker, metric=metric, on=on, images=len(better),
        accuracy=mean_interval(better, seed=seed), weaker_accuracy=mean_interval(worse, seed=seed),
        difference=paired_difference(better, worse, seed=seed),
    )  # fmt: skip


def leave_one_out(features: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return whether leave-one-out k-NN classifies each training image correctly, bool (m,) with m ≤ `JUDGED_BY`.

    Args:
        features: (n, D).
        labels: (n,) integers.
        seed: seed of the sample of m images.

    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(labels))[:JUDGED_BY])
    return np.asarray(knn.leave_one_out(features[rows], labels[rows]) == labels[rows])


def other_norm(artifact: Artifact) -> Artifact:
    """Return the artifact's manifest with the other token norm; it has no files, so only torch can run it."""
    manifest = artifact.manifest
    norm: TokenNorm = "raw" if manifest.aggregator.token_norm == "final" else "final"
    aggregator = msgspec.structs.replace(manifest.aggregator, token_norm=norm)
    space = embedding_space(manifest.backbone, aggregator, manifest.embedding, manifest.preprocess, manifest.keep)
    name = f"{manifest.name} {norm}"
    return Artifact(
        artifact.path,
        msgspec.structs.replace(manifest, name=name, aggregator=aggregator, embedding_space=space, files={}),
    )


def _built(model: Model, like: Artifact, build: BuildBaseline | None) -> Artifact:
    """Build a baseline in the precision of `like`; raise OptionError if that cannot be done."""
    if build is None:
        raise OptionError("give its artifact with --baseline")
    built = build(like, model.token_norm)
    if built.manifest.embedding_space != model.space:
        raise OptionError(
            f"what was built like {like.path} is in space {built.manifest.embedding_space}, expected {model.space};"
            " give its artifact with --baseline"
        )
    return built


def complete(models: Sequence[Model], build: BuildBaseline | None, reasons: list[Reason]) -> list[Model]:
    """Return the models that run on engines, with baselines in each precision that is needed.

    Args:
        models: models of a `Choice`.
        build: builds a missing baseline; None if baselines cannot be built.
        reasons: receives a sentence for each baseline that is missing and cannot be built.

    """
    kept = []
    for model in models:
        if model.baseline is not None:
            kept += [model] if model.judged else []
            continue
        asked = [a for other in models if other.baseline == model.title and other.judged for a in other.artifacts]
        here = [artifact for artifact in model.artifacts if artifact.manifest.files]
        for precision in sorted(
            {a.manifest.graph.precision for a in asked} - {a.manifest.graph.precision for a in here}
        ):
            like = next(a for a in asked if a.manifest.graph.precision == precision)
            try:
                here.append(_built(model, like, build))
            except MimError as error:
                advice = ""
                if like.manifest.embedding.whitening is not None and precision != "fp32":
                    advice = "; whitened [cls] loses too much in narrower precisions: evaluate artifacts built with --no-whiten"
                text = f"{model.title}, the stronger baseline, is missing in {precision}: {error}{advice}"
                reasons.append(("undecided", text))
        kept.append(replace(model, artifacts=tuple(here)))
    return kept
