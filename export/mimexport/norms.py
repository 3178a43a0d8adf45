"""Which token norm an aggregator reads by default: what was published or measured for a backbone, else its own.

On MAE ViT-B the k-NN of [cls] is 35.6 before the final norm and 16.1 after it. No rule tells which is better.
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
"""By timm's name: k-NN in per cent on ImageNet-1k, from the logs of github.com/billpsomas/efficient-probing.

k = 20, T = 0.07 (`knn.txt` and `knn_pos.txt` of each model). docs/results/published.md has more.
"""
_SOURCE = "published, ImageNet-1k"
_LIKE = {"cls+mean": ("cls", "mean")}
"""Made of parts that were measured: the better norm of both, where they agree."""


@dataclass(frozen=True, slots=True)
class NormChoice:
    """The better token norm of an aggregator on one backbone.

    Attributes:
        norm: the better one.
        better: its k-NN in per cent.
        worse: that of the other.
        source: where the figures are from.
    """

    norm: TokenNorm
    better: float
    worse: float
    source: str


def known_norm(agg: str, timm_name: str, weights_sha256: str, measured: Sequence[BackboneFigures]) -> NormChoice | None:
    """Return which norm is known to be better for aggregator `agg` on a backbone, or None.

    Args:
        agg: name of the aggregator.
        timm_name: of the backbone, with the tag of its weights.
        weights_sha256: digest of its weights.
        measured: what was measured on other backbones.
    """
    if figures := PUBLISHED.get(timm_name, {}).get(agg):
        return _choice(figures, _SOURCE)
    for known in measured:
        if known.weights_sha256 == weights_sha256 and (found := known.norms.get(agg)):
            return _choice(found, f"measured on {known.model}, {known.training:,} training images of Tiny ImageNet")
    return None


def default_norm(agg: str, timm_name: str, weights_sha256: str) -> TokenNorm:
    """Return the norm that aggregator `agg` reads on a backbone unless another is asked for."""
    found = [known_norm(part, timm_name, weights_sha256, read_measured()) for part in (agg, *_LIKE.get(agg, ()))]
    if found[0] is not None:
        return found[0].norm
    parts = {choice.norm for choice in found[1:] if choice is not None}
    return parts.pop() if len(parts) == 1 else AGGREGATORS[agg].token_norm


def weaker_norm(manifest: Manifest, measured: Sequence[BackboneFigures]) -> str | None:
    """Return one line where an artifact reads tokens of the norm that is known to be the weaker, or None.

    Of a whitened one, or one that drops patches, nothing is known: the figures are of vectors of all patches, not whitened.
    """
    backbone, aggregator = manifest.backbone, manifest.aggregator
    known = known_norm(aggregator.name, backbone.timm_name, backbone.weights_sha256, measured)
    if manifest.embedding.whitening is not None or manifest.keep is not None:
        return None
    if known is None or known.norm == aggregator.token_norm:
        return None
    return (
        f"--token-norm {aggregator.token_norm} is the weaker for {aggregator.name} of {backbone.model}: k-NN"
        f" {known.worse:.1f}, {known.norm} {known.better:.1f} ({known.source})"
    )


def _choice(figures: dict[TokenNorm, float], source: str) -> NormChoice:
    better, worse = sorted(figures, key=lambda norm: -figures[norm])
    return NormChoice(better, figures[better], figures[worse], source)
