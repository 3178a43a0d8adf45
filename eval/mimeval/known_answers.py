"""Figures that are known for a backbone, published or measured here, and whether they are met again by the same protocol."""

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
    """One figure: k-NN (k = 20, T = 0.07, cosine) of frozen features.

    Attributes:
        agg: "cls" or "mean".
        token_norm: of its tokens.
        percent: images that get the right class.
        tolerance: what another machine or another resize may change, in points.

    """

    agg: str
    token_norm: TokenNorm
    percent: float
    tolerance: float


class KnownAnswers(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one backbone.

    Attributes:
        model: its short name.
        data: what to give as `--data`, for people.
        classes: of that data set.
        training: images that are searched; the first of a balanced order where there are more.
        images: test images, likewise.
        source: who measured.
        answers: what.

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
    """An answer, what was found now, and whether it is the same within the tolerance."""

    answer: Answer
    percent: float

    @property
    def met(self) -> bool:
        """Whether it is."""
        return abs(self.percent - self.answer.percent) <= self.answer.tolerance


def find(model: str) -> KnownAnswers:
    """Return what is known of `model`.

    Raises:
        UnknownNameError: nothing is.

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
    """Yield every answer beside what torch gives now, in one pass of the backbone over the images.

    Args:
        known: of `find`.
        dataset: the images it was measured on.
        build: aggregator -> its artifact on this backbone.
        open_references: gives torch models.
        store: where features are kept.

    Raises:
        DataError: other data than what the answers are of.

    """
    if dataset.train is None or (len(dataset.classes), len(dataset.train), len(dataset.test)) != (
        known.classes, known.training, known.images,
    ):  # fmt: skip
        searched = 0 if dataset.train is None else len(dataset.train)
        raise DataError(
            f"the answers of {known.model} are of {known.classes:,} classes, {known.training:,} images to search and"
            f" {known.images:,} to test on, {dataset.name} has {len(dataset.classes):,}, {searched:,} and {len(dataset.test):,};"
            f" give {known.data}"
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
    labels = dataset.test.labels[images.order]
    for answer, train, test in zip(known.answers, trains, tests, strict=True):
        features = images.known(train)
        right = knn.predict(features.features, features.labels, test.embedding) == labels
        yield AnswerCheck(answer, 100 * float(np.mean(right)))


def lines(known: KnownAnswers, found: Sequence[AnswerCheck]) -> list[str]:
    """Return what was found, one line an answer."""
    return [
        f"{known.model} {one.answer.agg} {one.answer.token_norm:<5}  k-NN {one.percent:6.2f}   known {one.answer.percent:6.2f}"
        f" ± {one.answer.tolerance:g}   {'met' if one.met else 'NOT MET'}"
        for one in found
    ]


def _of_norm(artifact: Artifact, norm: TokenNorm) -> Artifact:
    return artifact if artifact.manifest.aggregator.token_norm == norm else other_norm(artifact)
