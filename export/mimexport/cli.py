"""The program `mimexport`: the commands of the torch side, and the one place where the packages' commands meet."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import mimeval.cli
import mimruntime.cli
import mimruntime.engines.cli
import mimruntime.serve.cli
import mimruntime.signing_cli
import mimruntime.triton.cli
from mimexport.aliases import ALIASES
from mimruntime.bench.cli import bench_command
from mimruntime.engines.cli import COMPILE_OPTIONS, compile_options, make_options, run_compile
from mimruntime.errors import OptionError, needs
from mimruntime.outputs import check_writable

if TYPE_CHECKING:
    from mimeval.statistics import Interval
    from mimexport.fitting.fitter import Fitter
    from mimexport.fitting.images import ImageSet
    from mimexport.heads import Head
    from mimexport.reference import References
    from mimruntime.artifact import Artifact
    from mimruntime.bench.measure import Peer

_BUILDING = "building an artifact"
_RANDOM = "WARNING: random weights, the vectors mean nothing; the artifact says so too"


@click.command()
@click.option("--model", required=True, help="Alias (see `mimexport models`) or timm name.")
@click.option(
    "--agg", default="topk", show_default=True, help="How patch tokens become one vector (`mimexport aggregators`)."
)
@click.option("--out", type=click.Path(path_type=Path), help="Artifact folder.  [default: artifacts/MODEL-AGG]")
@click.option("--k", help="topk: how many patches, as a count (49) or a share (50%).  [default: 75%]")
@click.option(
    "--score", help="topk: what is best: center-norm, input-norm, norm, cls-attention, learned.  [default: center-norm]"
)
@click.option(
    "--token-norm",
    type=click.Choice(["raw", "final"]),
    help="Tokens before or after the final norm.  [default: by aggregator]",
)
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16", "int8"]), default="fp32", show_default=True)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Real images: int8 is calibrated on some of them, a narrower precision is judged by the others.",
)
@click.option(
    "--image-size", type=click.IntRange(min=16), metavar="PX", help="Edge of the square input.  [default: the model's]"
)
@click.option("--with-selection", is_flag=True, help="Also output the share of every patch in the vector.")
@click.option(
    "--head",
    metavar="FILE|NAME",
    help="What was learned for this backbone: a head file, an embedded head's name, hub:SLUG.",
)
@click.option(
    "--whiten",
    type=click.IntRange(min=0),
    is_flag=False,
    flag_value=0,
    metavar="[DIM]",
    help="Apply the head's whitening, keeping DIM dimensions.  [default: not at all; without DIM: all]",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Checkpoint (.safetensors, .pth) instead of the hub.",
)
@click.option("--random-weights", is_flag=True, help="Weights drawn from a seed, for tests: the vectors mean nothing.")
@click.option("--force", is_flag=True, help="Replace an artifact that is there.")
@click.option("--engine", help="Compile for this engine too, as `mimexport compile` does; what follows is for that.")
@compile_options
def build(**given: Any) -> None:
    """Build an artifact: backbone and aggregator as one ONNX graph, compared with torch."""
    compiling = {name: given.pop(name) for name in COMPILE_OPTIONS}
    if given["engine"] is None and any(value is not None and value is not False for value in compiling.values()):
        raise click.UsageError("options of a compilation need --engine")
    if given["weights"] and given["random_weights"]:
        raise click.UsageError("--weights and --random-weights exclude each other")
    compilation = None if given["engine"] is None else make_options(given["engine"], compiling)
    if compilation is not None:
        from mimruntime.engines.compilation import check_options

        check_options(compilation, given["precision"])  # here too: what follows takes minutes
    with needs("export", _BUILDING):
        from mimexport.measured import known_losses, read_measured
        from mimexport.pipeline import BuildOptions
        from mimexport.pipeline import build as build_artifact
    if given["random_weights"]:
        click.secho(_RANDOM, fg="yellow", err=True)
    artifact = build_artifact(
        BuildOptions(
            model=given["model"],
            agg=given["agg"],
            out=given["out"] or Path("artifacts") / f"{given['model']}-{given['agg']}",
            agg_options={"k": given["k"], "score": given["score"]},
            token_norm=given["token_norm"],
            weights=given["weights"],
            random_seed=0 if given["random_weights"] else None,
            size=given["image_size"],
            precision=given["precision"],
            with_selection=given["with_selection"],
            head=given["head"],
            whiten=given["whiten"],
            calibrate=given["calibrate"],
            force=given["force"],
        ),
        report=lambda line: click.echo(f"  {line} …", err=True),
    )
    m = artifact.manifest
    if loss := known_losses(m, read_measured()):
        click.secho(f"NOTE: {loss}", fg="yellow", err=True)
    click.echo(
        f"{artifact.path}: {m.embedding.dim} numbers a vector, space {m.embedding_space}, {m.graph.precision},"
        f" worst cosine to torch {m.parity.worst_cosine:.7f}; licence of the weights: {m.backbone.license}"
    )
    if m.conversion:
        click.echo(
            f"  {m.graph.precision} against fp32 on {m.conversion.images} images: worst cosine"
            f" {m.conversion.worst_cosine:.5f}, median {m.conversion.median_cosine:.5f},"
            f" {100 * m.conversion.neighbour_overlap:.1f} % of the {m.conversion.neighbours} nearest kept"
        )
    if compilation is not None:
        run_compile(artifact.path, compilation)


@click.command()
@click.option("--model", required=True, help="Alias (see `mimexport models`) or timm name.")
@click.option("--agg", required=True, help="The aggregator to learn; one that learns nothing gets a whitening.")
@click.option(
    "--data", type=click.Path(path_type=Path), required=True,
    help="Folder or zip: CLASS/image, or train/CLASS/image and val/CLASS/image; without classes for --unlabelled.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="FILE.safetensors")
@click.option("--unlabelled", is_flag=True, help="Learn without labels (abmilp, topk, whitenings); labels only judge.")
@click.option(
    "--prior", type=click.Choice(["none", "center"]), help="abmilp: favour the centre of the image.  [default: none]"
)
@click.option("--depth", type=click.IntRange(min=1), help="abmilp: layers of the scoring network.  [default: 1]")
@click.option("--queries", type=click.IntRange(min=1), help="ep: learned queries.  [default: 16]")
@click.option("--score", help="topk: another score than a learned one; then only the whitening is fitted.")
@click.option("--k", help="topk: how many patches.  [default: what the images say]")
@click.option("--token-norm", type=click.Choice(["raw", "final"]), help="[default: by aggregator]")
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE", help="Checkpoint instead of the hub.")
@click.option("--random-weights", is_flag=True, help="Weights drawn from a seed, for tests.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--no-judge", is_flag=True, help="Do not measure accuracy on held-out labelled images.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path("~/.cache/mimexport"),
    show_default=True,
    help="Folder for tokens.",
)
def fit(**given: Any) -> None:
    """Learn a head on frozen tokens, with labels or without, and its whitening."""
    if given["weights"] and given["random_weights"]:
        raise click.UsageError("--weights and --random-weights exclude each other")
    if given["out"].suffix != ".safetensors":
        raise click.UsageError(f"--out {given['out']}: the name of a head ends in .safetensors")
    with needs("export", _BUILDING):
        from mimexport.fitting.fitter import FitOptions, Fitter
        from mimexport.fitting.images import labels_to_judge, open_images
        from mimexport.heads import save_head
    train, held_out = open_images(given["data"], seed=given["seed"])
    if train.labels is None and not given["unlabelled"]:
        raise OptionError(f"{given['data']} has no two class folders; learn without labels: --unlabelled")
    judged = None if held_out is None or train.labels is None or given["no_judge"] else (train, held_out)
    if judged:
        labels_to_judge(*judged)  # here too: what follows takes minutes
    check_writable(given["out"])  # here too: what follows takes minutes
    fitter = Fitter(
        FitOptions(
            model=given["model"],
            agg=given["agg"],
            images=train.images,
            labels=None if given["unlabelled"] else train.labels,
            digest=train.digest,
            cache=given["cache"].expanduser(),
            agg_options={name: given[name] for name in ("prior", "depth", "queries", "score", "k")},
            token_norm=given["token_norm"],
            weights=given["weights"],
            random_seed=0 if given["random_weights"] else None,
            seed=given["seed"],
        ),
        report=lambda line: click.echo(f"  {line} …", err=True),
        progress=_token_progress,
    )
    head = fitter.fit()
    save_head(head, given["out"])
    for score, k, recall in head.figures.get("two_view_recall", []):
        click.echo(
            f"topk --score {score} --k {k}: two views of an image find each other in {100 * recall:.1f} % of cases"
        )
    if judged:
        head = replace(head, figures=head.figures | _judge(fitter, head, judged))
        save_head(head, given["out"])
    click.echo(f"{given['out']}: {head.agg} {head.params} for {head.model}, {head.recipe['objective']}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def models(as_json: bool) -> None:
    """List the backbones that have a short name; any timm ViT, EVA, BEiT or Hiera name works too."""
    rows = [
        {"alias": name, "timm": a.timm_name, "size": a.size, "patch": a.patch, "tokens": a.tokens, "dim": a.dim,
         "license": a.license, "note": a.note}
        for name, a in ALIASES.items()
    ]  # fmt: skip
    _print_table(rows, as_json)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def aggregators(as_json: bool) -> None:
    """List the aggregators with their formulas (x_i: patch tokens, N of them)."""
    with needs("export", _BUILDING):
        from mimexport.aggregators import AGGREGATORS
    rows = [
        {"aggregator": name, "formula": kind.formula, "token norm": kind.token_norm,
         "needs [cls]": "yes" if kind.needs_cls else "no", "selection": "yes" if kind.has_weights else "no"}
        for name, kind in AGGREGATORS.items()
    ]  # fmt: skip
    _print_table(rows, as_json)


COMMANDS: list[click.Command] = [build, fit, models, aggregators]


def main() -> NoReturn:
    """Run the program `mimexport`."""
    shared = [*mimruntime.cli.COMMANDS, *mimruntime.engines.cli.COMMANDS, *mimruntime.serve.cli.COMMANDS]
    shared += [*mimruntime.signing_cli.COMMANDS, *mimruntime.triton.cli.COMMANDS]
    commands = [*COMMANDS, *shared, bench_command(_open_peers), *mimeval.cli.COMMANDS]
    mimruntime.cli.run(commands, obj=_references)


def _open_peers(artifact: Artifact, weights: Path | None) -> Sequence[Peer]:
    with needs("export", _BUILDING):
        from mimexport.peers import open_peers
    return open_peers(artifact, weights)


def _references(weights: Path | None, heads: tuple[Path, ...]) -> References:
    """Return what gives the evaluation its torch models."""
    with needs("export", _BUILDING):
        from mimexport.reference import References
    return References(weights, heads)


def _judge(fitter: Fitter, head: Head, sets: tuple[ImageSet, ImageSet]) -> dict[str, Any]:
    """Print and return the accuracy of [cls], mean and the head on held-out images, with intervals of the difference."""
    with needs("eval", "measuring accuracy (leave it out with --no-judge)"):
        from mimeval.rivals import judge
    from mimexport.fitting.fitter import plain_head
    from mimexport.fitting.images import labels_to_judge

    names = ("training", "held-out")
    tokens = [fitter.tokens(part.images, part.digest, name) for part, name in zip(sets, names, strict=True)]
    plain = [name for name in ("cls", "mean") if name != "cls" or fitter.backbone.shape.has_cls]
    rivals = {name: plain_head(name, fitter) for name in plain if name != head.agg} | {head.agg: head}
    features = {
        name: (fitter.vectors(rival, tokens[0], whitened=False), fitter.vectors(rival, tokens[1], whitened=False))
        for name, rival in rivals.items()
    }
    figures: dict[str, Any] = {"judged_on": len(sets[1].images)}
    for standing in judge(features, *labels_to_judge(*sets)):
        line = f"{standing.method:12}  {standing.rival:16} {_percent(standing.accuracy)}"
        if standing.difference is not None:
            line += f"   {_percent(standing.difference, sign='+')} to {next(iter(features))}"
        click.echo(line)
        figures[f"{standing.method}, {standing.rival}"] = round(100 * standing.accuracy.value, 2)
    return figures


def _percent(interval: Interval, sign: str = "") -> str:
    value, low, high = (f"{100 * part:{sign}.1f}" for part in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _token_progress(name: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r  {name}: {done} of {total}", nl=done == total, err=True)


def _print_table(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in widths}, *rows]:
        click.echo("  ".join(str(row[key]).ljust(width) for key, width in widths.items()).rstrip())
