"""Warn at build time about choices that lost to [cls] when they were measured on the embedded backbones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

import msgspec

from mimruntime.manifest import Manifest, TokenNorm

FILE = "measured.json"


class AggregatorFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One aggregator with its options, compared with the stronger [cls].

    Attributes:
        agg: name of the aggregator.
        params: the options that were set.
        share: share of patches that topk chooses; None for other aggregators.
        differences: by metric, the difference to [cls] in percentage points: value, lower and upper end of the 95 % interval.
    """

    agg: str
    params: dict[str, str | int]
    share: float | None
    differences: dict[str, tuple[float, float, float]]


class BackboneFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Results of `tools/measure_aggregators.py` for one backbone on Tiny ImageNet.

    Attributes:
        model: name of the backbone.
        weights_sha256: digest of its weights.
        training: number of training images; they were also used to choose the norms.
        images: number of test images.
        norms: by aggregator and token norm, leave-one-out k-NN accuracy on the training images in per cent.
        rows: aggregators compared with [cls] on the test images.
    """

    model: str
    weights_sha256: str
    training: int
    images: int
    norms: dict[str, dict[TokenNorm, float]]
    rows: list[AggregatorFigures]


@cache
def read_measured() -> list[BackboneFigures]:
    """Return the measurements stored in the package."""
    return msgspec.json.decode(
        (resources.files("mimexport") / "assets" / FILE).read_bytes(), type=list[BackboneFigures]
    )


def describe_losses(manifest: Manifest, measured: Sequence[BackboneFigures]) -> str | None:
    """Return one line about the backbones on which this choice lost to [cls], or None.

    If the artifact's own backbone was measured, only its results count; otherwise the results of all measured backbones do.
    The result is None for artifacts with whitening or dropped patches, because these were not measured.
    """
    if manifest.embedding.whitening is not None or manifest.keep is not None:
        return None
    own = [known for known in measured if known.weights_sha256 == manifest.backbone.weights_sha256]
    lost = {known.model: loss for known in own or measured if (loss := _loss(manifest, known.rows))}
    if not lost:
        return None
    told = "; ".join(f"{loss} on {model}" for model, loss in lost.items())
    return f"this choice lost to [cls] when measured: {told}"


def _loss(manifest: Manifest, rows: Sequence[AggregatorFigures]) -> str:
    params = manifest.aggregator.params
    patches = manifest.backbone.grid[0] * manifest.backbone.grid[1]
    share = int(params["k"]) / patches if "k" in params else None
    for row in rows:
        same = row.agg == manifest.aggregator.name and row.params.items() <= params.items()
        if same and (row.share is None or (share is not None and abs(row.share - share) < 0.01)):
            return ", ".join(
                f"{metric} {value:+.1f} [{low:+.1f}, {high:+.1f}]"
                for metric, (value, low, high) in row.differences.items()
                if high < 0
            )
    return ""
