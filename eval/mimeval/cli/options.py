"""Options that the commands of the evaluation share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from mimruntime.cli.command import gather, group, option
from mimruntime.cli.options import COUNT, PATH, Number

if TYPE_CHECKING:
    from mimeval.api import TorchSide

CACHE = Path("~/.cache/mimexport")
DATA = option("--data", required=True, metavar="SPEC", help="Folder or zip of CLASS/image, or NAME[:PATH].")
CACHE_FOLDER = option(
    "--cache", type=PATH, default=CACHE, show_default=True, help="Folder of stored features and data."
)


DEVICE = option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    metavar="NAME",
    help="Where torch computes: cpu, cuda.  [default: a GPU if any]",
)


class OpenTorchSide(Protocol):
    """Function from a checkpoint (or None), head files and a device to the torch side; click passes it as context object."""

    def __call__(self, weights: Path | None, heads: tuple[Path, ...], *, device: str) -> TorchSide:
        """Return the torch side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Options of the images and metrics; the fields are arguments of `mimeval.evaluate`."""

    data: str
    metrics: tuple[str, ...] = ()
    limit: int | None = None
    train_limit: int | None = None
    cache: Path = CACHE
    seed: int = 0

    def chosen(self) -> dict[str, Any]:
        """Return the fields as keyword arguments."""
        return {name: getattr(self, name) for name in self.__slots__}


def sample_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `SampleOptions`, passed as argument `sample`."""
    options = group(
        "Images and metrics",
        DATA,
        option("--metric", "metrics", multiple=True, help="knn, linear, few-shot, retrieval.  [default: all possible]"),
        option("--limit", type=COUNT, help="Most test images, with balanced classes.  [default: all]"),
        option("--train-limit", type=COUNT, help="Most training images.  [default: all]"),
        CACHE_FOLDER,
        option("--seed", type=Number(min=0), default=0, show_default=True, help="Seed of image sample and bootstrap."),
    )
    return options(gather(lambda: SampleOptions, "sample")(function))
