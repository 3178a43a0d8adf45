"""What a build may be asked for, and what can be refused before any work."""

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
    """What to build, and where.

    Attributes:
        model: alias or timm name, a timm model in memory with its weights, or what a loader of one's own gives.
        agg: name in `AGGREGATORS`, or an aggregator of one's own.
        out: the artifact folder.
        agg_options: of an aggregator that is named, by name; None stands for 'not given'.
        token_norm: None takes what is known to be better on the backbone (`norms.default_norm`), else the aggregator's own.
        weights: a checkpoint file.
        random_seed: draw random weights from this seed.
        size: edge of the square input, px; None takes the model's own.
        pixels: what is known better than timm of how images are made ready.
        license: of the weights; None is what timm says of its own, and 'not stated' for a file.
        precision: of the backbone.
        with_selection: add the graph output `selection`.
        head: a head, a head file, the name of an embedded head, or "hub:SLUG" for a published EP head.
        whiten: apply the head's whitening and keep so many dimensions, 0 for all; None leaves it out.
        whiten_by_default: where `whiten` is None, apply the whitening that this package ships for backbone and aggregator, if
            it does; [cls] stays plain, since its whitening survives no narrower precision.
        calibrate: folder of real images: the spread of their vectors is kept for those who store int8 or bits, int8 is
            calibrated on some of them, and the loss of every narrower precision is measured on the others.
        force: replace an artifact that is there.
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
        """Name of the aggregator; that of its class for one's own."""
        return self.agg if isinstance(self.agg, str) else type(self.agg).__name__

    @property
    def model_name(self) -> str:
        """Name of the backbone, as it was asked for."""
        return model_name(self.model)


def check_build_options(options: BuildOptions) -> None:
    """Refuse options that contradict each other.

    Raises:
        UnknownNameError: no such aggregator.
        OptionError: any other.

    """
    if isinstance(options.agg, str) and options.agg not in AGGREGATORS:
        raise UnknownNameError("aggregator", options.agg, AGGREGATORS)
    check_keep(options.keep, options.keep_by)
    if options.precision == "int8" and options.calibrate is None:
        raise OptionError("--precision int8 needs real images to calibrate on: --calibrate FOLDER")
    if isinstance(options.agg, Aggregator):
        if options.agg_name in AGGREGATORS:
            raise OptionError(f"an aggregator of one's own is named '{options.agg_name}', as one of this package")
        if options.agg_options:
            raise OptionError("an aggregator of one's own takes its options when it is made; leave agg_options out")
    if not isinstance(options.model, str) and (options.weights is not None or options.random_seed is not None):
        raise OptionError("a model in memory has its weights already; leave out weights and random_seed")
