"""The records of an evaluation report: the content of its JSON file, from which the other forms are written."""

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
    """The score of one model on one deployment by one metric.

    Attributes:
        model: title of the model.
        deployment: engine and precision, or `TORCH`.
        metric: name of the metric.
        fitted: source of the features to fit or search: torch's or the deployment's own.
        accuracy: mean over images with its interval.
        images: number of images.
        bits: correctness of every image, packed by `numpy.packbits`, in base64; None if scores are fractions.
        values: score of every image if `bits` is None.

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
    """The gain of a model over its baseline on one deployment, beside its gain in torch.

    Attributes:
        model: title of the model.
        baseline: title of its baseline.
        deployment: engine and precision.
        metric: name of the metric.
        fitted: see `Score`.
        found: gains, their change, and the verdict on it.
        mcnemar: the model on the deployment (first) against the model in torch (second); None for fractional scores.
        decides: whether the evaluation's verdict depends on it.

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
    """The difference of one model's vectors on one deployment from torch's.

    Attributes:
        model: title of the model.
        deployment: engine and precision.
        drift: the measured drift.
        problem: the limit that it exceeds, or None.
        rate: images per second of the engine alone, median over batches; None if not timed.

    """

    model: str
    deployment: str
    drift: Drift
    problem: str | None
    rate: float | None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The selection of one model on one image, for the page.

    Attributes:
        model: title of the model.
        deployment: engine and precision.
        image: name of the image.
        png: the graph's input, base64.
        shares: weight of every patch, rows from the top.

    """

    model: str
    deployment: str
    image: str
    png: str
    shares: list[list[float]]


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A test image that only one of two models classifies correctly in torch, for the page.

    Attributes:
        right: title of the model that finds its class.
        wrong: title of the other model.
        image: name of the image.
        label: its class.
        png: a small picture, base64.

    """

    right: str
    wrong: str
    image: str
    label: str
    png: str


class BaselineChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The choice of the stronger of two baselines in torch: [cls] raw or after the final norm.

    Attributes:
        stronger: title of the stronger baseline.
        weaker: title of the weaker baseline.
        metric: the metric of the comparison.
        on: the images of the comparison.
        images: number of these images.
        accuracy: accuracy of the stronger.
        weaker_accuracy: accuracy of the weaker.
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
        """Return the choice as a sentence."""
        change = self.difference
        return (
            f"{self.metric} of {self.stronger} {100 * self.accuracy.value:.1f}, of {self.weaker}"
            f" {100 * self.weaker_accuracy.value:.1f} ({100 * change.value:+.1f} [{100 * change.low:+.1f},"
            f" {100 * change.high:+.1f}]) on {self.images:,} {self.on}"
        )


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation.

    Attributes:
        verdict: the verdict on all rows that decide.
        reasons: the reasons for it, worst first, one sentence each.
        dataset: name of the data set.
        digest: digest of the test images on engines and of the training images, with order and labels.
        images: numbers of test images in torch, of test images on engines, and of training images.
        classes: number of classes.
        metric: the metric that decides the verdict.
        margin: the tolerated loss of gain, in the unit of the scores.
        seed: seed of the image draw and the bootstrap.
        names: names of the test images, in the order of the scores.
        notes: notes on the data for the reader.
        skipped: deployments that did not run, with reasons.
        baselines: the choice of the baseline for each backbone.
        scores: one per model, deployment, metric and `fitted`.
        gains: the same for all models but the baselines.
        drifts: one per model and deployment.
        samples: selections for the page.
        examples: images that only one of two models classifies correctly.
        labels: display names of models, if they differ from the titles.

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
