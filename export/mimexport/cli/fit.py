"""The command `mimexport fit`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from mimeval.cli.options import DEVICE
from mimeval.cli.progress import ConsoleProgress
from mimexport.cli.common import (
    BUILDING,
    KEEP,
    KEEP_BY,
    BackboneOptions,
    backbone_options,
    let_threads_sleep,
    step_text,
)
from mimruntime.cli.command import Command, gather, group, option
from mimruntime.cli.options import COUNT, PATH
from mimruntime.errors import OptionError, needs

if TYPE_CHECKING:
    from mimeval.statistics import Interval
    from mimexport.fitting.fitter import Fitter
    from mimexport.fitting.training_images import ImageSet
    from mimexport.heads import Head
    from mimruntime.manifest import TokenNorm

_CACHE = Path("~/.cache/mimexport")
_JUDGING = "measuring accuracy (leave it out with --no-judge)"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Options of `mimexport fit` except those of the backbone; see the help of the command."""

    agg: str
    data: Path
    out: Path
    unlabelled: bool = False
    prior: str | None = None
    depth: int | None = None
    queries: int | None = None
    score: str | None = None
    k: str | None = None
    token_norm: TokenNorm | None = None
    keep: str | None = None
    keep_by: str | None = None
    seed: int = 0
    no_judge: bool = False
    device: str = "auto"
    cache: Path = _CACHE

    def __post_init__(self) -> None:
        """Raise UsageError if the output file does not end in .safetensors."""
        if self.out.suffix != ".safetensors":
            raise click.UsageError(f"--out {self.out}: the name of a head file must end in .safetensors")

    def agg_options(self) -> dict[str, object]:
        """Return the aggregator's options by name; None means not given."""
        return {name: getattr(self, name) for name in ("prior", "depth", "queries", "score", "k")}


@click.command(
    "fit",
    cls=Command,
    section="Build",
    examples=(
        "mimexport fit --model mae-tiny --agg abmilp --data photos/ --out head.safetensors",
        "mimexport fit --model mae-tiny --agg topk --data photos.zip --unlabelled --out topk.safetensors",
    ),
)
@backbone_options(KEEP, KEEP_BY)
@group(
    "Head",
    option("--agg", required=True, help="Aggregator to learn; others get only a whitening."),
    option(
        "--prior", type=click.Choice(["none", "center"]), help="abmilp: favour the image's centre.  [default: none]"
    ),
    option("--depth", type=COUNT, help="abmilp: layers of the scoring network.  [default: 1]"),
    option("--queries", type=COUNT, help="ep: learned queries.  [default: 16]"),
    option("--score", help="topk: a fixed score; fits only a whitening.  [default: learned]"),
    option("--k", help="topk: number or share of patches.  [default: best on the images]"),
    option(
        "--token-norm",
        type=click.Choice(["raw", "final"]),
        help="Tokens before or after the norm.  [default: raw if learned, else better]",
    ),
)
@group(
    "Images",
    option("--data", type=PATH, required=True, help="Folder or zip of CLASS/image, or train/ and val/ of them."),
    option(
        "--unlabelled",
        is_flag=True,
        help="Learn without labels, as topk and whitenings do; labels only evaluate.",
    ),
    option("--no-judge", is_flag=True, help="Do not measure accuracy on held-out labelled images."),
    option("--cache", type=PATH, default=_CACHE, show_default=True, help="Folder of stored tokens."),
    option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the training."),
    DEVICE,
)
@group("Output", option("--out", type=PATH, required=True, metavar="FILE", help="Head file to write (.safetensors)."))
@gather(lambda: FitSettings, "settings")
def fit_command(settings: FitSettings, backbone: BackboneOptions) -> None:
    """Learn a head and its whitening on frozen tokens, with or without labels."""
    let_threads_sleep()
    with needs("export", BUILDING):
        from mimexport.api import check_out, open_fitter
        from mimexport.fitting.training_images import held_out_labels, open_images
        from mimexport.heads import save_head
    check_out(settings.out)
    train, held_out = open_images(settings.data)
    judged = None if held_out is None or train.labels is None or settings.no_judge else (train, held_out)
    if judged:
        held_out_labels(*judged)  # check the labels before the training, which takes minutes
    shown = ConsoleProgress()
    fitter = open_fitter(
        backbone.model,
        settings.agg,
        settings.data,
        labels=not settings.unlabelled,
        agg_options=settings.agg_options(),
        token_norm=settings.token_norm,
        weights=backbone.weights,
        random_seed=backbone.random_seed,
        seed=settings.seed,
        cache=settings.cache,
        keep=settings.keep,
        keep_by=settings.keep_by,
        device=settings.device,
        report=lambda line: shown.say(step_text(line)),
        progress=shown.progress,
    )
    head = fitter.fit()
    save_head(head, settings.out)
    for agg, recalls in head.figures["norms_two_view_recall"].items():
        told = ", ".join(f"{norm} {100 * recall:.1f} %" for norm, recall in recalls.items())
        click.echo(f"{agg}: recall@1 between two views of an image, by token norm: {told}")
    for score, k, recall in head.figures.get("two_view_recall", []):
        click.echo(f"topk --score {score} --k {k}: recall@1 between two views of an image: {100 * recall:.1f} %")
    if "choice" in head.figures:
        click.echo(f"chosen: {head.figures['choice']}")
    if settings.unlabelled and settings.keep is None:
        _print_fewer_patches(fitter, head)
    if judged:
        head = replace(head, figures=head.figures | _judge(fitter, head, judged))
        save_head(head, settings.out)
    click.echo(f"{settings.out}: {head.agg} {head.params} for {head.model}, {head.recipe['objective']}")


def _judge(fitter: Fitter, head: Head, sets: tuple[ImageSet, ImageSet]) -> dict[str, Any]:
    """Return `_held_out_figures`, computed on the device of the fit."""
    with needs("eval", _JUDGING):
        from mimeval.accelerator import accelerated
    from mimexport.gpu_products import products_on

    with accelerated(products_on(fitter.backbone.device)):
        return _held_out_figures(fitter, head, sets)


def _print_fewer_patches(fitter: Fitter, head: Head) -> None:
    """Print what the head's vectors lose with fewer patches in the encoder, and the cheapest choice that keeps enough."""
    from mimexport.fitting.fewer_patches import compare_on_views, compared_images
    from mimexport.keep_choices import as_lines

    try:
        choices = compare_on_views(fitter, head)
    except OptionError as error:
        click.echo(f"fewer patches: {error}")
        return
    click.echo(f"fewer patches in the encoder, two views of {compared_images(fitter):,} images, this head as it is:")
    for line in as_lines(choices):
        click.echo(line)
    click.echo("fit again with that --keep to deploy it; mimexport bench ARTIFACT --keep adds images/s")


def _held_out_figures(fitter: Fitter, head: Head, sets: tuple[ImageSet, ImageSet]) -> dict[str, Any]:
    """Print and return the accuracy of [cls] with either norm, mean and the head on held-out images.

    Each is compared with the stronger [cls], which is chosen on the training images.
    """
    with needs("eval", _JUDGING):
        from mimeval.baselines import leave_one_out
        from mimeval.feature_comparison import compare_features
    from mimexport.fitting.training_images import held_out_labels
    from mimexport.heads import plain_head
    from mimexport.norms import default_norm
    from mimruntime.manifest import TokenNorm

    names = ("training", "held-out")
    tokens = [fitter.tokens(part.images, part.digest, name) for part, name in zip(sets, names, strict=True)]
    norms: dict[str, tuple[TokenNorm, ...]] = {
        "mean": (default_norm("mean", fitter.loaded.timm_name, fitter.loaded.sha256),)
    }
    if fitter.backbone.shape.has_cls:
        norms = {"cls": get_args(TokenNorm)} | norms
    loaded, shape, keep = fitter.loaded, fitter.backbone.shape, fitter.backbone.keep
    heads = {
        f"{agg} {norm}": plain_head(agg, norm, loaded, shape, keep) for agg, wanted in norms.items() for norm in wanted
    }
    if head.agg not in norms:
        heads[head.agg] = head
    features = {
        name: (fitter.vectors(one, tokens[0], whitened=False), fitter.vectors(one, tokens[1], whitened=False))
        for name, one in heads.items()
    }
    labels = held_out_labels(*sets)
    candidates = [name for name in features if name.startswith("cls ")]
    strongest = max(candidates, key=lambda name: leave_one_out(features[name][0], labels[0]).mean(), default=None)
    if strongest is not None:  # goes first, because the others are compared with it
        features = {strongest: features[strongest]} | features
    figures: dict[str, Any] = {"judged_on": len(sets[1].images)}
    for found in compare_features(features, *labels):
        line = f"{found.score:12}  {found.features:16} {_percent(found.accuracy)}"
        if found.difference is not None:
            line += f"   {_percent(found.difference, sign='+')} to {next(iter(features))}"
        click.echo(line)
        figures[f"{found.score}, {found.features}"] = round(100 * found.accuracy.value, 2)
    return figures


def _percent(interval: Interval, sign: str = "") -> str:
    value, low, high = (f"{100 * part:{sign}.1f}" for part in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"
