"""What is known of a choice before it is deployed: how it did against [cls] on the embedded backbone."""

from __future__ import annotations

from importlib import resources

import msgspec

from mimruntime.manifest import Manifest

FILE = "measured.json"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One aggregator with its options against [cls], on `mae-tiny` and Tiny ImageNet.

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


def read_measured() -> list[Measured]:
    """Return what `tools/measure_aggregators.py` wrote into the package."""
    raw = (resources.files("mimexport") / "assets" / FILE).read_bytes()
    return msgspec.json.decode(raw, type=list[Measured])


def known_losses(manifest: Manifest, measured: list[Measured]) -> str | None:
    """Return one line on where this choice lost to [cls] when it was measured, or None.

    A whitened artifact is not judged: the comparison was made without.
    """
    if manifest.embedding.whitening is not None:
        return None
    params = manifest.aggregator.params
    patches = manifest.backbone.grid[0] * manifest.backbone.grid[1]
    share = int(params["k"]) / patches if "k" in params else None
    for known in measured:
        same = known.agg == manifest.aggregator.name and known.params.items() <= params.items()
        if not same or (known.share is not None and (share is None or abs(known.share - share) > 0.01)):
            continue
        lost = [
            f"{metric} {value:+.1f} [{low:+.1f}, {high:+.1f}]"
            for metric, (value, low, high) in known.differences.items()
            if high < 0
        ]
        return f"measured on mae-tiny, this choice loses to [cls]: {', '.join(lost)}" if lost else None
    return None
