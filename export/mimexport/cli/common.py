"""Options that the commands `build`, `fit` and others share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mimruntime.cli.command import gather, group, option
from mimruntime.cli.options import PATH
from mimruntime.errors import needs

if TYPE_CHECKING:
    from mimexport.loading import PixelConfig

BUILDING = "building an artifact"
RANDOM = "WARNING: the weights are random, so the vectors carry no meaning; use this artifact for tests only"

MODEL = option("--model", required=True, help="Alias (see `mimexport models`) or timm name.")
WEIGHTS = option("--weights", type=PATH, metavar="FILE", help="Checkpoint (.safetensors, .pth) instead of the hub.")
RANDOM_WEIGHTS = option(
    "--random-weights", is_flag=True, help="Use random weights, for tests: the vectors carry no meaning."
)
KEEP = option("--keep", metavar="SCHEDULE", help="Patches kept in the encoder: 50%, or 75%@0,50%@6.  [default: all]")
KEEP_BY = option(
    "--keep-by",
    metavar="RULE",
    help="Which patches stay: center, norm, …  [default: center-checkerboard]",
)


def let_threads_sleep() -> None:
    """Let torch's threads that wait for each other sleep soon; it must be called before torch is loaded.

    Without it they spin, and beside other programs take the time that they wait for.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneOptions:
    """Options that choose the backbone and its weights.

    Attributes:
        model: an alias or timm name.
        weights: a checkpoint file instead of the hub.
        random_weights: whether to draw random weights.

    """

    model: str
    weights: Path | None = None
    random_weights: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError if both a checkpoint and random weights are given."""
        if self.weights and self.random_weights:
            raise click.UsageError("--weights and --random-weights exclude each other; give only one")

    @property
    def random_seed(self) -> int | None:
        """Seed of the random weights; None without `random_weights`."""
        return 0 if self.random_weights else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelOptions:
    """Preprocessing options that override timm's; see `mimexport.loading.PixelConfig`."""

    data_config: str = "timm"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None

    def config(self) -> PixelConfig:
        """Return the configuration; single values override the named configuration."""
        with needs("export", BUILDING):
            from mimexport.loading import IMAGENET_PIXELS, PixelConfig
        named = IMAGENET_PIXELS.given() if self.data_config == "imagenet" else {}
        own = {name: getattr(self, name) for name in ("mean", "std", "crop_pct", "interpolation")}
        return PixelConfig(**(named | {name: value for name, value in own.items() if value is not None}))


def backbone_options(
    *more: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds `more` and the options of `BackboneOptions`, passed as argument `backbone`."""
    options = group("Backbone", MODEL, WEIGHTS, *more, RANDOM_WEIGHTS)
    return lambda function: options(gather(lambda: BackboneOptions, "backbone")(function))


def pixel_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `PixelOptions`, passed as argument `pixels`."""
    options = group(
        "Pixels",
        option(
            "--data-config",
            type=click.Choice(["timm", "imagenet"]),
            default="timm",
            show_default=True,
            metavar="NAME",
            help="Mean and std: timm (timm's for this model) or imagenet.",
        ),
        option("--mean", type=(float, float, float), metavar="R G B", help="Mean of the training pixels, in [0, 1]."),
        option("--std", type=(float, float, float), metavar="R G B", help="Std of the training pixels, in [0, 1]."),
        option(
            "--crop-pct",
            type=click.FloatRange(min=0, max=1, min_open=True),
            metavar="SHARE",
            help="Share of the edge that the centre crop keeps: above 0, at most 1.",
        ),
        option(
            "--interpolation",
            type=click.Choice(["bilinear", "bicubic", "lanczos"]),
            metavar="NAME",
            help="Interpolation of the resize: bilinear, bicubic or lanczos.",
        ),
    )
    return options(gather(lambda: PixelOptions, "pixels")(function))


def show_step(line: str) -> None:
    """Print a step's line on stderr."""
    click.echo(step_text(line), err=True)


def step_text(line: str) -> str:
    """Return the display text of a step or note."""
    return f"  {line}" if line.startswith("NOTE:") else f"  {line} …"
