"""What the commands of the torch side share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mimruntime.errors import needs

if TYPE_CHECKING:
    from mimexport.loading import PixelConfig

BUILDING = "building an artifact"
RANDOM = "WARNING: random weights, the vectors mean nothing; the artifact says so too"
_Command = TypeVar("_Command", bound=Callable[..., object])


def pixel_options(command: _Command) -> _Command:
    """Add the options that say how images are made ready, where timm does not know it."""
    for option in (
        click.option("--interpolation", type=click.Choice(["bilinear", "bicubic", "lanczos"]), help="Of the resize."),
        click.option(
            "--crop-pct",
            type=click.FloatRange(min=0, max=1, min_open=True),
            help="Share of the edge that the crop keeps.",
        ),
        click.option("--std", type=(float, float, float), metavar="R G B", help="Of training pixels, in [0, 1]."),
        click.option("--mean", type=(float, float, float), metavar="R G B", help="Of training pixels, in [0, 1]."),
        click.option(
            "--data-config",
            type=click.Choice(["timm", "imagenet"]),
            default="timm",
            show_default=True,
            help="Pixel statistics: timm's for this name, or ImageNet's, as MAE was trained with.",
        ),
    ):
        command = option(command)
    return command


def make_pixels(given: Mapping[str, Any]) -> PixelConfig:
    """Return what the options of `pixel_options` say; a single value goes before a named configuration."""
    with needs("export", BUILDING):
        from mimexport.loading import IMAGENET_PIXELS, PixelConfig
    named = IMAGENET_PIXELS.given() if given["data_config"] == "imagenet" else {}
    own = {name: given[name] for name in ("mean", "std", "crop_pct", "interpolation") if given[name] is not None}
    return PixelConfig(**(named | own))


def check_weights(given: Mapping[str, Any]) -> None:
    """Refuse a checkpoint beside random weights."""
    if given["weights"] and given["random_weights"]:
        raise click.UsageError("--weights and --random-weights exclude each other")


def show_step(line: str) -> None:
    """Say on stderr what is being done."""
    click.echo(f"  {line}" if line.startswith("NOTE:") else f"  {line} …", err=True)
