"""The command `mimexport build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mimexport.cli.common import BUILDING, RANDOM, check_weights, make_pixels, pixel_options, show_step
from mimruntime.cli.compile import CompileSettings, compile_options, run_compile
from mimruntime.errors import needs

if TYPE_CHECKING:
    from mimruntime.artifact import Artifact


@click.command("build")
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
    help="Tokens before or after the final norm.  [default: what is known to be better on the backbone]",
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
@click.option(
    "--license", metavar="TEXT", help="Licence of the weights.  [default: what is known; 'not stated' for a file]"
)
@pixel_options
@click.option("--random-weights", is_flag=True, help="Weights drawn from a seed, for tests: the vectors mean nothing.")
@click.option("--force", is_flag=True, help="Replace an artifact that is there.")
@click.option("--engine", help="Compile for this engine too, as `mimexport compile` does; what follows is for that.")
@compile_options("Compilation")
def build_command(compiling: CompileSettings, **given: Any) -> None:
    """Build an artifact: backbone and aggregator as one ONNX graph, compared with torch."""
    if given["engine"] is None and compiling.given:
        raise click.UsageError("options of a compilation need --engine")
    check_weights(given)
    compilation = None if given["engine"] is None else compiling.options(given["engine"])
    if compilation is not None:
        from mimruntime.engines.compilation import check_options

        check_options(compilation, given["precision"])  # here too: what follows takes minutes
    with needs("export", BUILDING):
        from mimexport.api import build
    if given["random_weights"]:
        click.secho(RANDOM, fg="yellow", err=True)
    artifact = build(
        given["model"],
        given["agg"],
        given["out"],
        agg_options={"k": given["k"], "score": given["score"]},
        token_norm=given["token_norm"],
        weights=given["weights"],
        random_seed=0 if given["random_weights"] else None,
        size=given["image_size"],
        pixels=make_pixels(given),
        license=given["license"],
        precision=given["precision"],
        with_selection=given["with_selection"],
        head=given["head"],
        whiten=given["whiten"],
        calibrate=given["calibrate"],
        force=given["force"],
        report=show_step,
    )
    _print_built(artifact)
    if compilation is not None:
        run_compile(artifact.path, compilation)


def _print_built(artifact: Artifact) -> None:
    from mimexport.measured import known_losses, read_measured
    from mimexport.norms import weaker_norm

    m = artifact.manifest
    for note in (known_losses(m, read_measured()), weaker_norm(m, read_measured())):
        if note:
            click.secho(f"NOTE: {note}", fg="yellow", err=True)
    click.echo(
        f"{artifact.path}: {m.embedding.dim} numbers a vector, space {m.embedding_space}, {m.graph.precision},"
        f" worst cosine to torch {m.parity.worst_cosine:.7f}; licence of the weights: {m.backbone.license}"
    )
    p = m.preprocess
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (p.mean, p.std))
    click.echo(f"  pixels: {p.size} px of {p.resize} ({p.mode}, {p.interpolation}), mean {mean}, std {std}")
    if m.conversion:
        click.echo(
            f"  {m.graph.precision} against fp32 on {m.conversion.images} images: worst cosine"
            f" {m.conversion.worst_cosine:.5f}, median {m.conversion.median_cosine:.5f},"
            f" {100 * m.conversion.neighbour_overlap:.1f} % of the {m.conversion.neighbours} nearest kept"
        )
