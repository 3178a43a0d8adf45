"""The command `mimexport eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from mimeval.cli.options import DEVICE, OpenTorchSide, SampleOptions, sample_options
from mimeval.cli.progress import ConsoleProgress
from mimruntime.cli.command import Command, gather, group, option
from mimruntime.cli.options import COUNT, PATH
from mimruntime.errors import needs


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """Options of `mimexport eval` except those of the images; see the help of the command."""

    artifacts: tuple[Path, ...]
    engines: tuple[str, ...] = ("all",)
    baseline: tuple[Path, ...] = ()
    deployed: int | None = None
    own: bool = True
    stored: tuple[str, ...] = ()
    margin: float = 0.5
    weights: Path | None = None
    heads: tuple[Path, ...] = ()
    device: str = "auto"
    out: Path = Path("reports/eval")

    def __post_init__(self) -> None:
        """Raise UsageError for values that click does not reject."""
        if not self.margin > 0:  # NaN passes click's range
            raise click.UsageError(f"--margin {self.margin}: expected points above 0")
        if not self.out.name:
            raise click.UsageError(f"--out {self.out}: expected a file name without suffix, for example reports/eval")


@click.command(
    "eval",
    cls=Command,
    section="Evaluate",
    examples=(
        "mimexport eval artifacts/mae-tiny-topk --data photos/ --engine onnxruntime",
        "mimexport eval artifacts/cls artifacts/topk --data tiny-imagenet --limit 2000 --out reports/topk",
    ),
)
@click.argument("artifacts", nargs=-1, required=True, type=PATH, metavar="ARTIFACT...")
@group(
    "Comparison",
    option(
        "--engine",
        "engines",
        multiple=True,
        default=("all",),
        show_default=True,
        metavar="NAME[:PRECISION]",
        help="Engine, or torch:bf16, torch:fp16; may be repeated.",
    ),
    option("--baseline", multiple=True, type=PATH, help="Artifact to compare with.  [default: [cls], built if needed]"),
    option("--deployed", type=COUNT, help="Number of test images for engines; torch uses all.  [default: all]"),
    option(
        "--store",
        "stored",
        multiple=True,
        type=click.Choice(["fp16", "int8", "bits", "rescored", "tf32"]),
        metavar="NAME",
        help="Also measure k-NN with this storage type; may be repeated.",
    ),
    option("--own/--no-own", default=True, help="Also fit on each engine's own training features.  [default: yes]"),
    option(
        "--margin",
        type=click.FloatRange(min=0, max=100, min_open=True),
        default=0.5,
        show_default=True,
        metavar="POINTS",
        help="Tolerated loss of gain, percentage points.",
    ),
)
@sample_options
@group(
    "Torch models",
    option("--weights", type=PATH, metavar="FILE", help="Checkpoint, if the weights came from a file."),
    option(
        "--head",
        "heads",
        multiple=True,
        type=PATH,
        metavar="FILE",
        help="Head file, if the head is not in this package.",
    ),
    DEVICE,
)
@group(
    "Output",
    option(
        "--out",
        type=PATH,
        default=Path("reports/eval"),
        show_default=True,
        metavar="STEM",
        help="Write STEM.json, STEM.md and STEM.html.",
    ),
)
@gather(lambda: EvalSettings, "settings")
@click.pass_obj
def eval_command(open_torch_side: OpenTorchSide, settings: EvalSettings, sample: SampleOptions) -> int:
    """Measure whether the gain over [cls] in torch is kept on the engines.

    SPEC is a folder or zip of CLASS/image, or a name: tiny-imagenet, imagenet, imagenette, cifar10, stl10, roxford5k,
    rparis6k, drawn, crops. NAME:PATH gives the path of its files. shifted:SPEC moves subjects out of the centre.

    Exit status: 0 the gain is kept, 1 it is not (or an error), 2 wrong usage, 3 undecided.
    """
    with needs("eval", "an evaluation"):
        from mimeval import api
        from mimeval.report_files import write_reports
        from mimeval.verdict import EXIT
    from mimruntime.outputs import check_writable

    check_writable(settings.out.with_name(f"{settings.out.name}.json"))  # before any computing
    report = api.evaluate(
        settings.artifacts,
        baseline=settings.baseline,
        engines=settings.engines,
        deployed=settings.deployed,
        own=settings.own,
        stored=settings.stored,
        margin=settings.margin / 100,
        torch_side=open_torch_side(settings.weights, settings.heads, device=settings.device),
        progress=ConsoleProgress(),
        **sample.chosen(),
    )
    click.echo(write_reports(report, settings.out))
    click.echo(f"{settings.out}.json, .md, .html")
    return EXIT[report.verdict]
