"""What is known of a choice before it is deployed: how it did against [cls] on the embedded backbones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

import msgspec

from mimruntime.manifest import Manifest, TokenNorm

FILE = "measured.json"


class AggregatorFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One aggregator with its options against the stronger [cls].

    Attributes:
        agg: its name.
        params: those that tell it from its siblings.
        share: of the patches that are chosen, for topk.
        differences: by metric, percentage points to [cls]: value, low and high end of the 95 % interval.
    """

    agg: str
    params: dict[str, str | int]
    share: float | None
    differences: dict[str, tuple[float, float, float]]


class BackboneFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What `tools/measure_aggregators.py` found on one backbone, with Tiny ImageNet.

    Attributes:
        model: its name.
        weights_sha256: digest of its weights.
        training: images that were learned from, and that chose the norms.
        images: test images.
        norms: by aggregator, k-NN in per cent of the training images, each left out in turn, by token norm.
        rows: aggregators against [cls], on the test images.
    """

    model: str
    weights_sha256: str
    training: int
    images: int
    norms: dict[str, dict[TokenNorm, float]]
    rows: list[AggregatorFigures]


@cache
def read_measured() -> list[BackboneFigures]:
    """Return what was measured, as it lies in the package."""
    return msgspec.json.decode(
        (resources.files("mimexport") / "assets" / FILE).read_bytes(), type=list[BackboneFigures]
    )


def describe_losses(manifest: Manifest, measured: Sequence[BackboneFigures]) -> str | None:
    """Return one line on where this choice lost to [cls] when it was measured, or None.

    Of a whitened artifact, or one that drops patches, nothing is known: the comparison was made without. What was measured on
    the artifact's own backbone is what counts; for one that was not measured, all the others are told.
    """
    if manifest.embedding.whitening is not None or manifest.keep is not None:
        return None
    own = [known for known in measured if known.weights_sha256 == manifest.backbone.weights_sha256]
    lost = {known.model: loss for known in own or measured if (loss := _loss(manifest, known.rows))}
    if not lost:
        return None
    told = "; ".join(f"{loss} on {model}" for model, loss in lost.items())
    return f"measured, this choice loses to [cls]: {told}"


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
