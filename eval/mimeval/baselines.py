"""What gains are counted from: the stronger of [cls] before and after the final norm, chosen on images that are not judged.

On published MAE ViT-B the norm alone is worth 19 points of k-NN, more than any aggregator: a gain over the weaker [cls] is
none. Both are measured, in torch; the stronger one runs on the engines. Where a backbone has no [cls] it is the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from mimeval import knn
from mimeval.models import BASELINES, Model
from mimeval.report import BaselineChoice
from mimeval.statistics import mean_interval, paired_difference
from mimeval.verdict import Reason
from mimruntime.artifact import Artifact
from mimruntime.errors import MimError, OptionError
from mimruntime.manifest import TokenNorm, embedding_space

JUDGED_BY = 10_000
"""Training images that choose, at most."""


BuildBaseline = Callable[[Artifact, TokenNorm], Artifact]
"""(artifact, norm) -> the baseline of its backbone, size and precision with this token norm, built."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The models with their baselines, and how these were chosen.

    Attributes:
        models: those that lost the choice among them, which are shown and not judged.
        chosen: one record for each pair of candidates.
        reasons: what the choice says of the verdict.
        notes: what a reader must know.

    """

    models: list[Model]
    chosen: list[BaselineChoice]
    reasons: list[Reason]
    notes: list[str]


def with_rivals(baselines: Sequence[Artifact]) -> list[Artifact]:
    """Return `baselines` and, of each whose other norm is not among them, the other: a manifest without files.

    A whitened one has no other: its whitening was fitted on tokens of one norm.
    """
    known = {artifact.manifest.embedding_space for artifact in baselines}
    rivals = {}
    for artifact in baselines:
        manifest = artifact.manifest
        usual = BASELINES[0] if manifest.backbone.reads_cls else BASELINES[1]
        if manifest.embedding.whitening is None and manifest.aggregator.name == usual:
            rival = other_norm(artifact)
            rivals[rival.manifest.embedding_space] = rival
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
    """Return the models, each counted from the stronger of its family's candidates.

    Args:
        models: of `group_models`.
        scores: of every candidate, by its title, image by image.
        metric: what these are, for people.
        on: of which images, for people.
        fixed: embedding spaces that were named as the baseline: they stay it, and are named where they are the weaker.
        seed: of the bootstrap.

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
        difference = paired_difference(scores[better.title], scores[worse.title], seed=seed)
        record = BaselineChoice(
            stronger=better.title, weaker=worse.title, metric=metric, on=on, images=len(scores[better.title]),
            accuracy=mean_interval(scores[better.title], seed=seed),
            weaker_accuracy=mean_interval(scores[worse.title], seed=seed), difference=difference,
        )  # fmt: skip
        choice.chosen.append(record)
        winners[family] = better
        if worse.space in fixed:
            winners[family] = worse
            text = f"gains are counted from {worse.title}, the weaker of two baselines: {record.sentence()}"
            if difference.low > 0:
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


def leave_one_out(features: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return whether k-NN among the other training images has each right, bool (m,); m is at most `JUDGED_BY`.

    Args:
        features: (n, D).
        labels: (n,) integers.
        seed: of the draw of m among n.

    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(labels))[:JUDGED_BY])
    return np.asarray(knn.leave_one_out(features[rows], labels[rows]) == labels[rows])


def other_norm(artifact: Artifact) -> Artifact:
    """Return the manifest of the same aggregation of tokens of the other norm; it has no files, torch alone can run it."""
    manifest = artifact.manifest
    norm: TokenNorm = "raw" if manifest.aggregator.token_norm == "final" else "final"
    aggregator = msgspec.structs.replace(manifest.aggregator, token_norm=norm)
    space = embedding_space(manifest.backbone, aggregator, manifest.embedding, manifest.preprocess, manifest.keep)
    name = f"{manifest.name} {norm}"
    return Artifact(
        artifact.path,
        msgspec.structs.replace(manifest, name=name, aggregator=aggregator, embedding_space=space, files={}),
    )


def complete(models: Sequence[Model], build: BuildBaseline | None, reasons: list[Reason]) -> list[Model]:
    """Return the models that run on engines, baselines in every precision of those that are counted from them.

    Args:
        models: of a `Choice`.
        build: makes a baseline that is not there.
        reasons: gets a sentence for one that cannot be had.

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
                if build is None:
                    raise OptionError("give its artifact with --baseline")
                here.append(build(like, model.token_norm))
            except MimError as error:
                advice = ""
                if like.manifest.embedding.whitening is not None and precision != "fp32":
                    advice = (
                        "; whitened [cls] survives no narrower precision: evaluate artifacts built with --no-whiten"
                    )
                text = f"{model.title}, the stronger baseline, is not there in {precision}: {error}{advice}"
                reasons.append(("undecided", text))
        kept.append(replace(model, artifacts=tuple(here)))
    return kept
