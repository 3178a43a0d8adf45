"""The command `mimexport bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimruntime.cli.command import Command, group, option
from mimruntime.cli.options import COUNT, PATH, Seconds
from mimruntime.errors import MissingExtraError

if TYPE_CHECKING:
    from mimruntime.artifact import Artifact
    from mimruntime.bench.measure import Peer

OpenPeers = Callable[["Artifact", Path | None], "Sequence[Peer]"]
"""Given the artifact and a file of weights: other ways to run the same weights; they need torch."""


def bench_command(open_peers: OpenPeers | None = None) -> click.Command:
    """Return the command; without `open_peers` it knows no peers."""

    @click.command(
        "bench",
        cls=Command,
        section="Deploy",
        examples=(
            "mimexport bench artifacts/mae-tiny-topk --engine onnxruntime --engine openvino",
            "mimexport bench artifacts/mae-tiny-topk --peers --json rates.json --plot rates.png",
        ),
    )
    @click.argument("artifact", type=PATH)
    @group(
        "What is measured",
        option("--engine", "engines", multiple=True, default=["all"], show_default=True, help="May be repeated."),
        option("--provider", help="Hardware of the engines.  [default: as compiled, or cpu]"),
        option("--peers", is_flag=True, help="Also torch eager and autocast, and timm's plain [cls] export."),
        option("--weights", type=PATH, metavar="FILE", help="Checkpoint of the peers, as for the build."),
    )
    @group(
        "How",
        option("--images", multiple=True, type=PATH, help="Photographs, or folders of them.  [default: synthetic]"),
        option("--batches", default="1,2,4,8,16", show_default=True, metavar="N,…", help="Batch sizes."),
        option("--seconds", type=Seconds(min=0), default=2.0, show_default=True, help="Time for each batch size."),
        option("--pairs", type=COUNT, default=7, show_default=True, help="Paired runs for each ratio."),
    )
    @group(
        "Output",
        option("--json", "json_file", type=PATH, metavar="FILE", help="Write every figure to FILE."),
        option("--plot", "plot_file", type=PATH, metavar="FILE", help="Draw the rates into FILE."),
    )
    def bench(
        artifact: Path,
        engines: tuple[str, ...],
        provider: str | None,
        peers: bool,
        weights: Path | None,
        images: tuple[Path, ...],
        batches: str,
        seconds: float,
        pairs: int,
        json_file: Path | None,
        plot_file: Path | None,
    ) -> None:
        """Measure an artifact's engines on this machine, and ratios to other ways of running its weights."""
        from mimruntime.artifact import Artifact
        from mimruntime.bench.bench import all_engines
        from mimruntime.bench.bench import bench as measure
        from mimruntime.bench.report import as_text, write_json, write_plot
        from mimruntime.images import find_images
        from mimruntime.outputs import check_writable

        sizes = _sizes(batches)
        if weights and not peers:
            raise click.UsageError("--weights is for --peers")
        for file in (json_file, plot_file):
            if file:
                check_writable(file)
        if peers and open_peers is None:
            raise MissingExtraError("--peers", extra="export")
        rivals = open_peers(Artifact.open(artifact), weights) if peers and open_peers else ()
        report = measure(
            artifact,
            all_engines() if "all" in engines else engines,
            provider=provider,
            peers=rivals,
            images=find_images(images) if images else (),
            batches=sizes,
            seconds=seconds,
            pairs=pairs,
            report=lambda line: click.echo(f"  {line} …", err=True),
        )
        for line in as_text(report):
            click.echo(line)
        if json_file:
            write_json(report, json_file)
        if plot_file:
            write_plot(report, plot_file)

    return bench


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise click.UsageError(f"--batches {text}: expected numbers, for example 1,4,8") from error
    if sizes[0] < 1:
        raise click.UsageError(f"--batches {text}: expected at least 1")
    return sizes
