"""Options that the commands of the evaluation share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mimruntime.cli.command import gather, group, option
from mimruntime.cli.options import COUNT, PATH, Number

if TYPE_CHECKING:
    from mimeval.api import TorchSide

CACHE = Path("~/.cache/mimexport")
DATA = option("--data", required=True, metavar="SPEC", help="A folder or zip of CLASS/image, or NAME[:PATH].")
CACHE_FOLDER = option("--cache", type=PATH, default=CACHE, show_default=True, help="Folder for features and data.")


class OpenTorchSide(Protocol):
    """(checkpoint or None, head files) -> the torch side; what click hands to a command as its object."""

    def __call__(self, weights: Path | None, heads: tuple[Path, ...]) -> TorchSide:
        """Return the torch side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Which images are used and what is measured on them; `mimeval.evaluate` takes each by its name."""

    data: str
    metrics: tuple[str, ...] = ()
    limit: int | None = None
    train_limit: int | None = None
    cache: Path = CACHE
    seed: int = 0

    def chosen(self) -> dict[str, Any]:
        """Return the fields by their names."""
        return {name: getattr(self, name) for name in self.__slots__}


def sample_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `SampleOptions`, handed over as `sample`."""
    options = group(
        "Images and metrics",
        DATA,
        option("--metric", "metrics", multiple=True, help="knn, linear, few-shot, retrieval.  [default: all possible]"),
        option("--limit", type=COUNT, help="Test images at most, classes in balance.  [default: all]"),
        option("--train-limit", type=COUNT, help="Training images at most.  [default: all]"),
        CACHE_FOLDER,
        option("--seed", type=Number(min=0), default=0, show_default=True, help="Of the image draw and the bootstrap."),
    )
    return options(gather(lambda: SampleOptions, "sample")(function))
