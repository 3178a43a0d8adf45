"""Known k-NN accuracies of backbones, published or measured, and a check that they are reproduced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

import msgspec
import numpy as np

from mimeval import knn
from mimeval.baselines import other_norm
from mimeval.datasets import Dataset
from mimeval.deployments import OpenReferences, reference_identity
from mimeval.errors import DataError
from mimeval.feature_store import FeatureStore
from mimeval.images import choose_images
from mimruntime.artifact import Artifact
from mimruntime.embedder import Embedder
from mimruntime.errors import UnknownNameError
from mimruntime.manifest import TokenNorm
from mimruntime.rows import CHUNK


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A known accuracy: k-NN (k = 20, T = 0.07, cosine) of frozen features.

    Attributes:
        agg: "cls" or "mean".
        token_norm: token norm of the features.
        percent: accuracy in per cent.
        tolerance: accepted difference in percentage points, for other machines or resize implementations.

    """

    agg: str
    token_norm: TokenNorm
    percent: float
    tolerance: float


class KnownAnswers(msgspec.Struct, frozen=True, kw_only=True):
    """The known accuracies of one backbone.

    Attributes:
        model: short name of the backbone.
        data: value of `--data`, for display.
        classes: number of classes of the data set.
        training: number of training images; the first of a balanced order if there are more.
        images: number of test images; the first of a balanced order if there are more.
        source: where the accuracies come from.
        answers: the accuracies.

    """

    model: str
    data: str
    classes: int
    training: int
    images: int
    source: str
    answers: list[Answer]


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """A known accuracy and the measured one."""

    answer: Answer
    percent: float

    @property
    def met(self) -> bool:
        """Whether the measured accuracy is within the tolerance."""
        return abs(self.percent - self.answer.percent) <= self.answer.tolerance


def find(model: str) -> KnownAnswers:
    """Return the known accuracies of `model`.

    Raises:
        UnknownNameError: there are none.

    """
    raw = resources.files("mimeval").joinpath("known_answers.json").read_bytes()
    table = {known.model: known for known in msgspec.json.decode(raw, type=list[KnownAnswers])}
    if model not in table:
        raise UnknownNameError("backbone with known answers", model, table)
    return table[model]


def check(
    known: KnownAnswers,
    dataset: Dataset,
    build: Callable[[str], Artifact],
    open_references: OpenReferences,
    store: FeatureStore,
) -> Iterator[AnswerCheck]:
    """Yield each known accuracy with the one measured in torch, in one pass of the backbone over the images.

    Args:
        known: the result of `find`.
        dataset: the data set of the known accuracies.
        build: returns the artifact of an aggregator on this backbone.
        open_references: opens torch models.
        store: stores features.

    Raises:
        DataError: the data set differs from that of the known accuracies, or an image cannot be read.

    """
    if dataset.train is None or (len(dataset.classes), len(dataset.train), len(dataset.test)) != (
        known.classes, known.training, known.images,
    ):  # fmt: skip
        searched = 0 if dataset.train is None else len(dataset.train)
        raise DataError(
            f"the answers of {known.model} are for {known.classes:,} classes, {known.training:,} training images and"
            f" {known.images:,} test images, but {dataset.name} has {len(dataset.classes):,}, {searched:,} and"
            f" {len(dataset.test):,}; give {known.data}"
        )
    built = {agg: build(agg) for agg in dict.fromkeys(answer.agg for answer in known.answers)}
    artifacts = [_of_norm(built[answer.agg], answer.token_norm) for answer in known.answers]
    images = choose_images(dataset, None, seed=0)
    with_engines = list(zip(artifacts, open_references(artifacts), strict=True))
    embedders = [Embedder(artifact, engine, batch_size=CHUNK) for artifact, engine in with_engines]
    try:
        identities = [reference_identity(artifact, engine) for artifact, engine in with_engines]
        jobs = list(zip(embedders, identities, strict=True))
        trains, tests = images.train_tables(store, jobs, "torch"), images.test_tables(store, jobs, "torch")
    finally:
        for embedder in embedders:
            embedder.close()
    for table in (trains[0], tests[0]):
        if table is not None and table.errors:
            first = next(iter(table.errors.values()))
            raise DataError(
                f"{dataset.name}: {len(table.errors)} images could not be read, for one {first}; the answers are for all"
                f" {len(table.embedding):,}, so repair these"
            )
    labels = dataset.test.labels[images.order]
    for answer, train, test in zip(known.answers, trains, tests, strict=True):
        features = images.known(train)
        right = knn.predict(features.features, features.labels, test.embedding) == labels
        yield AnswerCheck(answer, 100 * float(np.mean(right)))


def lines(known: KnownAnswers, found: Sequence[AnswerCheck]) -> list[str]:
    """Return the results as text, one line per answer."""
    return [
        f"{known.model} {one.answer.agg} {one.answer.token_norm:<5}  k-NN {one.percent:6.2f}   known {one.answer.percent:6.2f}"
        f" ± {one.answer.tolerance:g}   {'met' if one.met else 'NOT MET'}"
        for one in found
    ]


def _of_norm(artifact: Artifact, norm: TokenNorm) -> Artifact:
    return artifact if artifact.manifest.aggregator.token_norm == norm else other_norm(artifact)
