"""What an evaluation found, whole: the content of the JSON file, from which the other forms are written."""

from __future__ import annotations

import base64
from typing import Literal

import msgspec
import numpy as np

from mimeval.deployments import SkippedDeployment
from mimeval.drift import Drift
from mimeval.statistics import GainVerdict, Interval, McNemar, Verdict, mean_interval

TORCH = "torch fp32"
"""The reference, as a deployment."""
Fitted = Literal["torch", "own"]


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one deployment by one metric.

    Attributes:
        model: its title.
        deployment: engine and precision, or `TORCH`.
        metric: its name.
        fitted: on whose features the classifier was fitted, or whose were searched: torch's or the deployment's own.
        accuracy: mean over images with its interval.
        images: how many.
        bits: right or wrong for every image, packed as `numpy.packbits` does, base64; None where scores are fractions.
        values: score of every image where `bits` is None.

    """

    model: str
    deployment: str
    metric: str
    fitted: Fitted
    accuracy: Interval
    images: int
    bits: str | None = None
    values: list[float] | None = None

    def scores(self) -> np.ndarray:
        """Return the score of every image (n,): bool, or float64 in [0, 1]."""
        if self.bits is None:
            return np.array(self.values or [], np.float64)
        packed = np.frombuffer(base64.b64decode(self.bits), np.uint8)
        return np.unpackbits(packed, count=self.images).astype(bool)


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """What a model gains over its baseline on one deployment, beside what it gains in torch.

    Attributes:
        model: its title.
        baseline: title of what it is compared with.
        deployment: engine and precision.
        metric: its name.
        fitted: see `Score`.
        found: gains, their change, and the verdict on it.
        mcnemar: the model on the deployment (first) against itself in torch (second); None for fractional scores.
        decides: whether the evaluation's verdict rests on it.

    """

    model: str
    baseline: str
    deployment: str
    metric: str
    fitted: Fitted
    found: GainVerdict
    mcnemar: McNemar | None
    decides: bool


class DeploymentDrift(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors of one model on one deployment against torch's.

    Attributes:
        model: its title.
        deployment: engine and precision.
        drift: what was measured.
        problem: which limit it passes, or None.
        rate: images per second of the engine alone, median over batches; None where they were not timed.

    """

    model: str
    deployment: str
    drift: Drift
    problem: str | None
    rate: float | None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The selection of one model over one image, for people to look at.

    Attributes:
        model: its title.
        deployment: engine and precision.
        image: its name.
        png: what the graph was given, base64.
        shares: of every patch, rows from top.

    """

    model: str
    deployment: str
    image: str
    png: str
    shares: list[list[float]]


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A test image that one of two models gets right in torch and the other does not, for people to look at.

    Attributes:
        right: title of the model that finds its class.
        wrong: title of the other.
        image: its name.
        label: its class.
        png: a small picture, base64.

    """

    right: str
    wrong: str
    image: str
    label: str
    png: str


class BaselineChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which of two baselines is the stronger in torch, [cls] raw or after the final norm.

    Attributes:
        stronger: its title.
        weaker: title of the other.
        metric: what they were compared by.
        on: which images chose.
        images: how many.
        accuracy: of the stronger.
        weaker_accuracy: of the other.
        difference: stronger minus weaker, paired over images.

    """

    stronger: str
    weaker: str
    metric: str
    on: str
    images: int
    accuracy: Interval
    weaker_accuracy: Interval
    difference: Interval

    def sentence(self) -> str:
        """Return it for people."""
        change = self.difference
        return (
            f"{self.metric} of {self.stronger} {100 * self.accuracy.value:.1f}, of {self.weaker}"
            f" {100 * self.weaker_accuracy.value:.1f} ({100 * change.value:+.1f} [{100 * change.low:+.1f},"
            f" {100 * change.high:+.1f}]) on {self.images:,} {self.on}"
        )


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation.

    Attributes:
        verdict: of all that decides.
        reasons: what led to it, worst first; a sentence each.
        dataset: its name.
        digest: of the test images that engines saw and of those learned from, with their order and labels.
        images: test images in torch, those on engines, training images.
        classes: number of them.
        metric: the verdict rests on it.
        margin: the loss of gain that is tolerated, in the unit of the scores.
        seed: of the image draw and the bootstrap.
        names: test images, in the order of the scores.
        notes: what a reader must know of the data.
        skipped: what did not run, each with its reason.
        baselines: how the baselines were chosen, one a backbone.
        scores: one a model, deployment, metric and side.
        gains: likewise, for all but the baselines.
        drifts: one a model and deployment.
        samples: selections to look at.
        examples: images that one model gets right and the other does not.
        labels: the name that people know a model by, where it is not its title.

    """

    verdict: Verdict
    reasons: list[str]
    dataset: str
    digest: str
    images: dict[str, int]
    classes: int
    metric: str
    margin: float
    seed: int
    names: list[str]
    notes: list[str]
    skipped: list[SkippedDeployment]
    scores: list[Score]
    gains: list[Gain]
    drifts: list[DeploymentDrift]
    samples: list[Sample]
    baselines: list[BaselineChoice] = []
    examples: list[Example] = []
    labels: dict[str, str] = {}


def score(model: str, deployment: str, metric: str, fitted: Fitted, scores: np.ndarray, *, seed: int) -> Score:
    """Return the record of `scores` (n,), bool or fractions."""
    binary = scores.dtype == np.bool_
    return Score(
        model=model,
        deployment=deployment,
        metric=metric,
        fitted=fitted,
        accuracy=mean_interval(scores, seed=seed),
        images=len(scores),
        bits=base64.b64encode(np.packbits(scores).tobytes()).decode() if binary else None,
        values=None if binary else [round(float(value), 6) for value in scores],
    )


def encode(report: Report) -> bytes:
    """Return the report as JSON."""
    return msgspec.json.encode(report) + b"\n"
