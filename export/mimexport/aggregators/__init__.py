"""The table of aggregators, and the function that creates one for a backbone."""

from __future__ import annotations

import inspect
from typing import Any

from mimexport.aggregators.abmilp import AbMILP
from mimexport.aggregators.aim import AimPooling
from mimexport.aggregators.attention import AttentionMean, AttentionMinEntropy
from mimexport.aggregators.base import Aggregator, Pooled
from mimexport.aggregators.center import Center, CenterWeighted
from mimexport.aggregators.ep import EfficientProbing
from mimexport.aggregators.pooling import Cls, ClsMean, GeM, Max, Mean
from mimexport.aggregators.simpool import SimPool
from mimexport.aggregators.topk import TopK
from mimexport.backbone import Shape
from mimruntime.errors import OptionError, UnknownNameError

__all__ = ["AGGREGATORS", "Aggregator", "Pooled", "make_aggregator"]

AGGREGATORS: dict[str, type[Aggregator]] = {
    "cls": Cls,
    "mean": Mean,
    "cls+mean": ClsMean,
    "max": Max,
    "gem": GeM,
    "center": Center,
    "center-weighted": CenterWeighted,
    "attn-mean": AttentionMean,
    "attn-min-entropy": AttentionMinEntropy,
    "topk": TopK,
    "abmilp": AbMILP,
    "ep": EfficientProbing,
    "simpool": SimPool,
    "aim": AimPooling,
}


def make_aggregator(name: str, shape: Shape, options: dict[str, Any]) -> Aggregator:
    """Return the aggregator `name` for a backbone.

    Args:
        name: a name in `AGGREGATORS`.
        shape: of the backbone.
        options: by name; None means not given.

    Raises:
        UnknownNameError: no such aggregator.
        OptionError: the aggregator needs [cls] and the backbone has none, an option is unknown, or a value is invalid.

    """
    if name not in AGGREGATORS:
        raise UnknownNameError("aggregator", name, AGGREGATORS)
    kind = AGGREGATORS[name]
    if kind.needs_cls and not shape.has_cls:
        free = ", ".join(other for other, made in AGGREGATORS.items() if not made.needs_cls)
        raise OptionError(f"aggregator {name} reads [cls], which this backbone does not have; use one of: {free}")
    given = {key: value for key, value in options.items() if value is not None}
    accepted = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key in given:
        if key not in accepted:
            takes = ", ".join(accepted) or "no options"
            raise OptionError(f"aggregator {name} takes {takes}; {key} was given")
    return kind(shape, **given)
