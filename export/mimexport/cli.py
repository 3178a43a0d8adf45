"""The program `mimexport`: the commands of the torch side, and the one place where the packages' commands meet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

import mimruntime.cli
import mimruntime.serve.cli
from mimexport.aliases import ALIASES
from mimruntime.errors import MissingExtraError

_RANDOM = "WARNING: random weights, the vectors mean nothing; the artifact says so too"


@click.command()
@click.option("--model", required=True, help="Alias (see `mimexport models`) or timm name.")
@click.option(
    "--agg", default="topk", show_default=True, help="How patch tokens become one vector (`mimexport aggregators`)."
)
@click.option("--out", type=click.Path(path_type=Path), help="Artifact folder.  [default: artifacts/MODEL-AGG]")
@click.option("--k", help="topk: how many patches, as a count (49) or a share (50%).  [default: 50%]")
@click.option("--score", help="topk: what is best: input-norm, norm, cls-attention.  [default: input-norm]")
@click.option(
    "--token-norm",
    type=click.Choice(["raw", "final"]),
    help="Tokens before or after the final norm.  [default: by aggregator]",
)
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option(
    "--image-size", type=click.IntRange(min=16), metavar="PX", help="Edge of the square input.  [default: the model's]"
)
@click.option("--with-selection", is_flag=True, help="Also output the share of every patch in the vector.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Checkpoint (.safetensors, .pth) instead of the hub.",
)
@click.option("--random-weights", is_flag=True, help="Weights drawn from a seed, for tests: the vectors mean nothing.")
def build(**given: Any) -> None:
    """Build an artifact: backbone and aggregator as one ONNX graph, compared with torch."""
    if given["weights"] and given["random_weights"]:
        raise click.UsageError("--weights and --random-weights exclude each other")
    with _export_extra():
        from mimexport.build import BuildOptions
        from mimexport.build import build as build_artifact
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
        ),
        report=lambda line: click.echo(f"  {line} …", err=True),
    )
    m = artifact.manifest
    click.echo(
        f"{artifact.path}: {m.embedding.dim} numbers a vector, space {m.embedding_space}, {m.graph.precision},"
        f" worst cosine to torch {m.parity.worst_cosine:.7f}; licence of the weights: {m.backbone.license}"
    )


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
    with _export_extra():
        from mimexport.aggregators import AGGREGATORS
    rows = [
        {"aggregator": name, "formula": kind.formula, "token norm": kind.token_norm,
         "needs [cls]": "yes" if kind.needs_cls else "no", "selection": "yes" if kind.has_weights else "no"}
        for name, kind in AGGREGATORS.items()
    ]  # fmt: skip
    _print_table(rows, as_json)


COMMANDS: list[click.Command] = [build, models, aggregators]


def main() -> NoReturn:
    """Run the program `mimexport`."""
    mimruntime.cli.run([*COMMANDS, *mimruntime.cli.COMMANDS, *mimruntime.serve.cli.COMMANDS])


def _print_table(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in widths}, *rows]:
        click.echo("  ".join(str(row[key]).ljust(width) for key, width in widths.items()).rstrip())


@contextlib.contextmanager
def _export_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError("building an artifact", "export") from error
