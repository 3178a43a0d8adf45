"""The default token norm of an aggregator: as published or measured for the backbone, else the aggregator's own.

On MAE ViT-B the k-NN accuracy of [cls] is 35.6 % before the final norm and 16.1 % after it. No rule predicts the better one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mimexport.aggregators import AGGREGATORS
from mimexport.known_losses import BackboneFigures, read_measured
from mimruntime.manifest import Manifest, TokenNorm

PUBLISHED: dict[str, dict[str, dict[TokenNorm, float]]] = {
    "vit_base_patch16_224.mae": {"cls": {"raw": 35.57, "final": 16.14}, "mean": {"raw": 34.11, "final": 10.63}},
    "vit_large_patch16_224.mae": {"cls": {"raw": 48.06, "final": 38.72}},
}
"""By timm name, aggregator and norm: k-NN accuracy in per cent on ImageNet-1k, from github.com/billpsomas/efficient-probing.

k = 20, T = 0.07, from the logs `knn.txt` and `knn_pos.txt` of each model; see docs/results/published.md.
"""
_SOURCE = "published, ImageNet-1k"
_LIKE = {"cls+mean": ("cls", "mean")}
"""Aggregators composed of measured ones: their default is the better norm of the parts, if the parts agree."""


@dataclass(frozen=True, slots=True)
class NormChoice:
    """The better token norm of an aggregator on one backbone.

    Attributes:
        norm: the better norm.
        better: its k-NN accuracy in per cent.
        worse: the k-NN accuracy of the other norm in per cent.
        source: where the figures come from.
    """

    norm: TokenNorm
    better: float
    worse: float
    source: str


def known_norm(agg: str, timm_name: str, weights_sha256: str, measured: Sequence[BackboneFigures]) -> NormChoice | None:
    """Return the token norm known to be better for aggregator `agg` on a backbone, or None.

    Args:
        agg: name of the aggregator.
        timm_name: timm name of the backbone, with the tag of its weights.
        weights_sha256: digest of its weights.
        measured: measurements, searched by the digest.
    """
    if figures := PUBLISHED.get(timm_name, {}).get(agg):
        return _choice(figures, _SOURCE)
    for known in measured:
        if known.weights_sha256 == weights_sha256 and (found := known.norms.get(agg)):
            return _choice(found, f"measured on {known.model}, {known.training:,} training images of Tiny ImageNet")
    return None


def default_norm(agg: str, timm_name: str, weights_sha256: str) -> TokenNorm:
    """Return the default token norm of aggregator `agg` on a backbone."""
    found = [known_norm(part, timm_name, weights_sha256, read_measured()) for part in (agg, *_LIKE.get(agg, ()))]
    if found[0] is not None:
        return found[0].norm
    parts = {choice.norm for choice in found[1:] if choice is not None}
    return parts.pop() if len(parts) == 1 else AGGREGATORS[agg].token_norm


def weaker_norm(manifest: Manifest, measured: Sequence[BackboneFigures]) -> str | None:
    """Return a warning if an artifact reads tokens with the weaker norm, or None.

    The result is None for artifacts with whitening or dropped patches, because these were not measured.
    """
    backbone, aggregator = manifest.backbone, manifest.aggregator
    known = known_norm(aggregator.name, backbone.timm_name, backbone.weights_sha256, measured)
    if manifest.embedding.whitening is not None or manifest.keep is not None:
        return None
    if known is None or known.norm == aggregator.token_norm:
        return None
    return (
        f"--token-norm {aggregator.token_norm} is weaker for {aggregator.name} on {backbone.model}: k-NN"
        f" {known.worse:.1f} %, with {known.norm} {known.better:.1f} % ({known.source})"
    )


def _choice(figures: dict[TokenNorm, float], source: str) -> NormChoice:
    better, worse = sorted(figures, key=lambda norm: -figures[norm])
    return NormChoice(better, figures[better], figures[worse], source)
