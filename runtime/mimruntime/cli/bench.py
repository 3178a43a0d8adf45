"""The command `mimexport bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimruntime.cli.command import Command, gather, group, option
from mimruntime.cli.options import COUNT, DECODE, PATH, Seconds
from mimruntime.errors import MissingExtraError

if TYPE_CHECKING:
    from mimruntime.artifact import Artifact
    from mimruntime.bench.measure import Peer
    from mimruntime.decoders import Decode

OpenPeers = Callable[["Artifact", Path | None], "Sequence[Peer]"]
"""Function from an artifact and a weights file to peers: other ways to run the same weights, which need torch."""
CompareKeeps = Callable[["Artifact", "BenchSettings", "Sequence[str]"], "Iterable[str]"]
"""Function from artifact, settings and engines to lines about the artifact with fewer patches; it needs torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """Options of `mimexport bench`; see the help of the command."""

    artifact: Path
    engines: tuple[str, ...] = ("all",)
    provider: str | None = None
    peers: bool = False
    weights: Path | None = None
    images: tuple[Path, ...] = ()
    decode: Decode = "threads"
    batches: str = "1,2,4,8,16"
    seconds: float = 2.0
    pairs: int = 7
    json_file: Path | None = None
    plot_file: Path | None = None
    keep: tuple[str, ...] = ()
    keep_by: str | None = None

    def schedules(self) -> list[str]:
        """Return what `--keep` names: a text with an @ is one schedule, any other a list."""
        return [keep for text in self.keep for keep in ([text] if "@" in text else text.split(","))]

    def sizes(self) -> list[int]:
        """Return the batch sizes, each once, smallest first."""
        try:
            sizes = sorted({int(part) for part in self.batches.split(",")})
        except ValueError as error:
            raise click.UsageError(f"--batches {self.batches}: expected numbers, for example 1,4,8") from error
        if sizes[0] < 1:
            raise click.UsageError(f"--batches {self.batches}: expected at least 1")
        return sizes


def bench_command(open_peers: OpenPeers | None = None, compare_keeps: CompareKeeps | None = None) -> Command:
    """Return the command; `--peers` needs `open_peers`, and `--keep` needs `compare_keeps`."""

    @click.command(
        "bench",
        cls=Command,
        section="Deploy",
        examples=(
            "mimexport bench artifacts/mae-tiny-topk --engine onnxruntime --engine openvino",
            "mimexport bench artifacts/mae-tiny-topk --peers --json rates.json --plot rates.png",
            "mimexport bench artifacts/mae-tiny-topk --engine openvino --keep 75%,50%,25% --images photos/",
        ),
    )
    @click.argument("artifact", type=PATH)
    @group(
        "Engines",
        option(
            "--engine",
            "engines",
            multiple=True,
            default=["all"],
            show_default=True,
            help="Engine to measure; may be repeated.",
        ),
        option("--provider", help="Hardware of the engines.  [default: as compiled, or cpu]"),
        option(
            "--peers",
            is_flag=True,
            help="Also measure torch (eager, autocast; on a GPU compiled) and timm's export.",
        ),
        option("--keep", multiple=True, metavar="SCHEDULE,…", help="Compare fewer patches with all; as in the build."),
        option("--keep-by", metavar="RULE", help="Which patches stay; as in the build."),
        option("--weights", type=PATH, metavar="FILE", help="Checkpoint for --peers and --keep."),
    )
    @group(
        "Measurement",
        option("--images", multiple=True, type=PATH, help="Photographs, or folders of them.  [default: synthetic]"),
        DECODE,
        option("--batches", default="1,2,4,8,16", show_default=True, metavar="N,…", help="Batch sizes."),
        option("--seconds", type=Seconds(min=0), default=2.0, show_default=True, help="Time for each batch size."),
        option("--pairs", type=COUNT, default=7, show_default=True, help="Paired runs for each ratio."),
    )
    @group(
        "Output",
        option("--json", "json_file", type=PATH, metavar="FILE", help="Write all figures to FILE."),
        option("--plot", "plot_file", type=PATH, metavar="FILE", help="Plot the rates into FILE."),
    )
    @gather(lambda: BenchSettings, "settings")
    def bench(settings: BenchSettings) -> None:
        """Measure the speed of an artifact's engines on this machine, also compared with torch."""
        if settings.keep:
            _compare(settings, compare_keeps)
        else:
            _bench(settings, open_peers)

    return bench


def _compare(settings: BenchSettings, compare_keeps: CompareKeeps | None) -> None:
    """Print what fewer patches would give."""
    from mimruntime.artifact import Artifact

    if settings.peers or settings.json_file or settings.plot_file:
        raise click.UsageError("--keep prints a table of its own; leave out --peers, --json and --plot")
    if compare_keeps is None:
        raise MissingExtraError("--keep", extra="export")
    engines = ("onnxruntime", "openvino") if "all" in settings.engines else settings.engines
    for line in compare_keeps(Artifact.open(settings.artifact), settings, engines):
        click.echo(line)


def _bench(settings: BenchSettings, open_peers: OpenPeers | None) -> None:
    from mimruntime.artifact import Artifact
    from mimruntime.bench.bench import all_engines, bench
    from mimruntime.bench.formats import as_text, write_json, write_plot
    from mimruntime.image_paths import find_images
    from mimruntime.outputs import check_writable

    sizes = settings.sizes()
    if settings.weights and not settings.peers:
        raise click.UsageError("--weights needs --peers or --keep; add one, or leave --weights out")
    if settings.keep_by:
        raise click.UsageError("--keep-by needs --keep; give --keep, for example 75%,50%")
    for file in (settings.json_file, settings.plot_file):
        if file:
            check_writable(file)
    if settings.peers and open_peers is None:
        raise MissingExtraError("--peers", extra="export")
    peers = open_peers(Artifact.open(settings.artifact), settings.weights) if settings.peers and open_peers else ()
    report = bench(
        settings.artifact,
        all_engines() if "all" in settings.engines else settings.engines,
        provider=settings.provider,
        peers=peers,
        images=find_images(settings.images) if settings.images else (),
        decode=settings.decode,
        batches=sizes,
        seconds=settings.seconds,
        pairs=settings.pairs,
        report=lambda line: click.echo(f"  {line} …", err=True),
    )
    for line in as_text(report):
        click.echo(line)
    if settings.json_file:
        write_json(report, settings.json_file)
    if settings.plot_file:
        write_plot(report, settings.plot_file)
