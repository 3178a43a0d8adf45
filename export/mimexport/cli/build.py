"""The command `mimexport build`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimexport.cli.common import (
    BUILDING,
    KEEP,
    KEEP_BY,
    RANDOM,
    BackboneOptions,
    PixelOptions,
    backbone_options,
    pixel_options,
    show_step,
)  # fmt: skip
from mimruntime.cli.command import Command, gather, group, option
from mimruntime.cli.compile import CompileSettings, compile_options, run_compile
from mimruntime.cli.options import PATH, Number
from mimruntime.errors import needs

if TYPE_CHECKING:
    from mimruntime.artifact import Artifact
    from mimruntime.engines.options import CompileOptions
    from mimruntime.manifest import Precision, TokenNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """Options of `mimexport build` except those of backbone, pixels and compilation; see the help of the command."""

    agg: str = "topk"
    k: str | None = None
    score: str | None = None
    token_norm: TokenNorm | None = None
    with_selection: bool = False
    head: str | None = None
    whiten: int | None = None
    no_whiten: bool = False
    license: str | None = None
    image_size: int | None = None
    keep: str | None = None
    keep_by: str | None = None
    out: Path | None = None
    precision: Precision = "fp32"
    calibrate: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse a whitening that is asked for and declined."""
        if self.whiten is not None and self.no_whiten:
            raise click.UsageError("--whiten and --no-whiten exclude each other")


@click.command(
    "build",
    cls=Command,
    section="Build",
    examples=(
        "mimexport build --model mae-tiny --out artifacts/tiny",
        "mimexport build --model mae-b16 --weights mae.pth --data-config imagenet --k 50% --engine openvino",
    ),
)
@backbone_options(
    option("--license", metavar="TEXT", help="Licence of the weights.  [default: published; file: 'not stated']"),
    option("--image-size", type=Number(min=16), metavar="PX", help="Edge of the square input.  [default: the model's]"),
    KEEP,
    KEEP_BY,
)
@pixel_options
@group(
    "Aggregation",
    option("--agg", default="topk", show_default=True, help="Aggregator (see `mimexport aggregators`)."),
    option("--k", help="topk: number (49) or share (50%) of patches.  [default: 75%]"),
    option("--score", help="topk: center-norm (default), input-norm, norm, cls-attention, learned."),
    option(
        "--token-norm",
        type=click.Choice(["raw", "final"]),
        help="Read tokens before or after the final norm.  [default: by backbone]",
    ),
    option("--with-selection", is_flag=True, help="Also output the weight of each patch in the vector."),
    option("--head", metavar="FILE|NAME", help="Learned head: a file, the name of an embedded head, hub:SLUG."),
    option(
        "--whiten",
        type=Number(min=0),
        is_flag=False,
        flag_value=0,
        metavar="[DIM]",
        help="Whiten, and keep DIM dimensions.  [default: if one is included]",
    ),
    option("--no-whiten", is_flag=True, help="Plain vectors, though a whitening is shipped."),
)
@group(
    "Output",
    option("--out", type=PATH, help="Artifact folder.  [default: artifacts/MODEL-AGG]"),
    option(
        "--precision",
        type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
        default="fp32",
        show_default=True,
        metavar="NAME",
        help="Precision of the backbone: fp32, fp16, bf16 or int8.",
    ),
    option(
        "--calibrate",
        type=PATH,
        metavar="FOLDER",
        help="Folder of real images for int8, precision checks, `embed --store`.",
    ),
    option("--force", is_flag=True, help="Overwrite an existing artifact."),
)
@group("Compilation, as `mimexport compile` does it", option("--engine", help="Compile for this engine too."))
@compile_options("Compilation, as `mimexport compile` does it")
@gather(lambda: BuildSettings, "settings")
def build_command(
    settings: BuildSettings,
    backbone: BackboneOptions,
    pixels: PixelOptions,
    engine: str | None,
    compiling: CompileSettings,
) -> None:
    """Build an artifact: one ONNX graph of backbone and aggregator, checked against torch."""
    compilation = _compilation(engine, compiling, settings.precision)
    with needs("export", BUILDING):
        from mimexport.api import build
    if backbone.random_weights:
        click.secho(RANDOM, fg="yellow", err=True)
    artifact = build(
        backbone.model,
        settings.agg,
        settings.out,
        agg_options={"k": settings.k, "score": settings.score},
        token_norm=settings.token_norm,
        weights=backbone.weights,
        random_seed=backbone.random_seed,
        size=settings.image_size,
        pixels=pixels.config(),
        license=settings.license,
        precision=settings.precision,
        with_selection=settings.with_selection,
        head=settings.head,
        whiten=False if settings.no_whiten else settings.whiten,
        calibrate=settings.calibrate,
        force=settings.force,
        keep=settings.keep,
        keep_by=settings.keep_by,
        report=show_step,
    )
    _print_built(artifact, whitened_by_default=settings.whiten is None)
    if compilation is not None:
        run_compile(artifact.path, compilation)


def _compilation(engine: str | None, compiling: CompileSettings, precision: Precision) -> CompileOptions | None:
    """Return the checked options of the compilation after the build, or None; call before the build, which takes minutes."""
    if engine is None:
        if compiling.given:
            raise click.UsageError("compilation options were given without --engine; add --engine NAME")
        return None
    from mimruntime.engines.compilation import check_options

    options = compiling.options(engine)
    check_options(options, precision)
    return options


def _print_built(artifact: Artifact, *, whitened_by_default: bool) -> None:
    from mimexport.known_losses import describe_losses, read_measured
    from mimexport.norms import weaker_norm

    m = artifact.manifest
    for note in (describe_losses(m, read_measured()), weaker_norm(m, read_measured())):
        if note:
            click.secho(f"NOTE: {note}", fg="yellow", err=True)
    click.echo(
        f"{artifact.path}: {m.embedding.dim} dimensions, embedding space {m.embedding_space}, {m.graph.precision},"
        f" worst cosine to torch {m.parity.worst_cosine:.7f}; licence of the weights: {m.backbone.license}"
    )
    if m.embedding.whitening is not None and whitened_by_default:
        click.echo("  vectors are whitened, by the matrix that this package ships; --no-whiten builds plain ones")
    p = m.preprocess
    click.echo(f"  pixels: crop {p.size} px, resize {p.resize} px ({p.mode}, {p.interpolation}), {p.normalisation}")
    if m.conversion:
        click.echo(
            f"  {m.graph.precision} against fp32 on {m.conversion.images} images: worst cosine"
            f" {m.conversion.worst_cosine:.5f}, median {m.conversion.median_cosine:.5f},"
            f" {100 * m.conversion.neighbour_overlap:.1f} % of the {m.conversion.neighbours} nearest kept"
        )
