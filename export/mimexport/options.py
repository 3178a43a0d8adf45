"""Options of a build, and the checks that need no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mimexport.aggregators import AGGREGATORS, Aggregator
from mimexport.heads import Head
from mimexport.keep import check_keep
from mimexport.loaded_model import LoadedModel
from mimexport.loading import PixelConfig, model_name
from mimruntime.errors import OptionError, UnknownNameError
from mimruntime.manifest import Precision, TokenNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Options of a build.

    Attributes:
        model: alias or timm name, a timm model in memory with its weights, or a `LoadedModel`.
        agg: name in `AGGREGATORS`, or an instance of the user's own subclass.
        out: the artifact folder.
        agg_options: options of a named aggregator, by name; None means not given.
        token_norm: None takes the norm known to be better on the backbone (`norms.default_norm`), else the aggregator's own.
        weights: a checkpoint file.
        random_seed: draw random weights from this seed.
        size: edge of the square input, px; None takes the model's own.
        pixels: preprocessing settings that override timm's.
        license: licence of the weights; None takes timm's, 'not stated' for a file.
        precision: precision of the backbone.
        with_selection: add the graph output `selection`.
        head: a head, a head file, the name of an embedded head, or "hub:SLUG" for a published EP head.
        whiten: apply the head's whitening and keep this many dimensions, 0 for all; None: see `whiten_by_default`.
        whiten_by_default: if `whiten` is None, apply this package's whitening for backbone and aggregator, if there is one.
            [cls] is excluded, because its whitened vectors lose too much in narrower precisions.
        calibrate: folder of real images. The statistics of their vectors are stored, for int8 and binary storage. int8 is
            calibrated on some of them. The loss of precisions below fp32 is measured on the others.
        force: replace an existing artifact.
        keep: how many patches stay in the encoder, "50%", or a schedule, "75%@0,50%@6" (before block 0, before block 6).
        keep_by: the rule that chooses them; None takes `keep.DEFAULT_RULE`.

    """

    model: str | nn.Module | LoadedModel
    agg: str | Aggregator
    out: Path
    agg_options: Mapping[str, Any] = field(default_factory=dict)
    token_norm: TokenNorm | None = None
    weights: Path | None = None
    random_seed: int | None = None
    size: int | None = None
    pixels: PixelConfig = field(default_factory=PixelConfig)
    license: str | None = None
    precision: Precision = "fp32"
    with_selection: bool = False
    head: str | Head | None = None
    whiten: int | None = None
    whiten_by_default: bool = False
    calibrate: Path | None = None
    force: bool = False
    keep: str | None = None
    keep_by: str | None = None

    @property
    def agg_name(self) -> str:
        """Name of the aggregator; the class name for an instance."""
        return self.agg if isinstance(self.agg, str) else type(self.agg).__name__

    @property
    def model_name(self) -> str:
        """Name of the backbone, as given by the user."""
        return model_name(self.model)


def check_build_options(options: BuildOptions) -> None:
    """Raise an error if options are unknown or contradict each other.

    Raises:
        UnknownNameError: no such aggregator.
        OptionError: options contradict each other.

    """
    if isinstance(options.agg, str) and options.agg not in AGGREGATORS:
        raise UnknownNameError("aggregator", options.agg, AGGREGATORS)
    check_keep(options.keep, options.keep_by)
    if options.precision == "int8" and options.calibrate is None:
        raise OptionError("--precision int8 needs real images to calibrate on: --calibrate FOLDER")
    if isinstance(options.agg, Aggregator):
        if options.agg_name in AGGREGATORS:
            raise OptionError(f"your aggregator class has the name '{options.agg_name}' of a built-in one; rename it")
        if options.agg_options:
            raise OptionError("agg_options needs a named aggregator; give your own its options when you create it")
    if not isinstance(options.model, str) and (options.weights is not None or options.random_seed is not None):
        raise OptionError("a model in memory already has its weights; leave weights and random_seed out")
