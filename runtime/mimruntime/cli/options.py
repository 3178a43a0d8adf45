"""Options and option types that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mimruntime.cli.command import gather, group, option

PATH = click.Path(path_type=Path)


class Number(click.IntRange):
    """An integer, shown as N in the help."""

    name = "n"


COUNT = Number(min=1)


class Seconds(click.FloatRange):
    """A time in seconds, shown as S in the help."""

    name = "s"


SECONDS = Seconds(min=0, min_open=True)


SCALED_DECODING = option(
    "--scaled-decoding", is_flag=True, help="Decode large JPEGs at reduced size: faster, vectors change a little."
)

CACHE = Path("~/.cache/mimexport")
CACHE_FOLDER = option("--cache", type=PATH, default=CACHE, show_default=True, help="Folder for vectors and thumbnails.")


DECODE = option(
    "--decode",
    type=click.Choice(["threads", "processes", "gpu"]),
    default="threads",
    show_default=True,
    metavar="NAME",
    help="threads; processes (many CPUs); gpu (JPEGs).",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options of the engine; the fields are arguments of `mimruntime.Embedder.open`.

    Attributes:
        engine: a name in `mimruntime.engines.ENGINES`, or "auto".
        provider: the hardware, by the engine's own name.
        threads: CPU threads of one run.
        public_key: a minisign public key, as text or file.
        check_reference: whether to compare two images with torch's vectors when the engine is opened.

    """

    engine: str = "auto"
    provider: str | None = None
    threads: int | None = None
    public_key: str | None = None
    check_reference: bool = True

    def chosen(self) -> dict[str, Any]:
        """Return the fields as arguments of `Embedder.open`."""
        return {name: getattr(self, name) for name in self.__slots__}


ENGINE_OPTIONS = group(
    "Engine",
    option("--engine", default="auto", show_default=True, help="onnxruntime, openvino, tensorrt or tensorrt-rtx."),
    option("--provider", help="Hardware, by the engine's name.  [default: as compiled, or cpu]"),
    option("--threads", type=COUNT, help="CPU threads of one run.  [default: as tuned, or all]"),
    option(
        "--public-key",
        metavar="KEY|FILE",
        envvar="MIMEXPORT_PUBLIC_KEY",
        help="Require a signature by this minisign key.",
    ),
    option(
        "--check-reference/--no-check-reference",
        default=True,
        show_default=False,
        envvar="MIMEXPORT_CHECK_REFERENCE",
        help="Compare two images with torch's vectors at start.  [default: yes]",
    ),
)
"""Adds the options of `EngineOptions`."""


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `EngineOptions`, passed as argument `engine`."""
    return ENGINE_OPTIONS(gather(lambda: EngineOptions, "engine")(function))
