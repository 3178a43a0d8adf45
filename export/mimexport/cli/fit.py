"""The command `mimexport fit`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from mimexport.cli.common import BUILDING, check_weights, show_step
from mimruntime.errors import needs
from mimruntime.manifest import TokenNorm

if TYPE_CHECKING:
    from mimeval.statistics import Interval
    from mimexport.fitting.fitter import Fitter
    from mimexport.fitting.images import ImageSet
    from mimexport.heads import Head


@click.command("fit")
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
@click.option(
    "--token-norm", type=click.Choice(["raw", "final"]), help="[default: what is known, or what these images say]"
)
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
def fit_command(**given: Any) -> None:
    """Learn a head on frozen tokens, with labels or without, and its whitening."""
    check_weights(given)
    if given["out"].suffix != ".safetensors":
        raise click.UsageError(f"--out {given['out']}: the name of a head ends in .safetensors")
    with needs("export", BUILDING):
        from mimexport.api import check_out, open_fitter
        from mimexport.fitting.images import labels_to_judge, open_images
        from mimexport.heads import save_head
    check_out(given["out"])
    train, held_out = open_images(given["data"], seed=given["seed"])
    judged = None if held_out is None or train.labels is None or given["no_judge"] else (train, held_out)
    if judged:
        labels_to_judge(*judged)  # here too: what follows takes minutes
    fitter = open_fitter(
        given["model"],
        given["agg"],
        given["data"],
        labels=not given["unlabelled"],
        agg_options={name: given[name] for name in ("prior", "depth", "queries", "score", "k")},
        token_norm=given["token_norm"],
        weights=given["weights"],
        random_seed=0 if given["random_weights"] else None,
        seed=given["seed"],
        cache=given["cache"],
        report=show_step,
        progress=_token_progress,
    )
    head = fitter.fit()
    save_head(head, given["out"])
    for agg, recalls in head.figures["norms_two_view_recall"].items():
        told = ", ".join(f"{norm} {100 * recall:.1f} %" for norm, recall in recalls.items())
        click.echo(f"{agg}: two views of an image find each other by tokens of norm {told}")
    for score, k, recall in head.figures.get("two_view_recall", []):
        click.echo(
            f"topk --score {score} --k {k}: two views of an image find each other in {100 * recall:.1f} % of cases"
        )
    if judged:
        head = replace(head, figures=head.figures | _judge(fitter, head, judged))
        save_head(head, given["out"])
    click.echo(f"{given['out']}: {head.agg} {head.params} for {head.model}, {head.recipe['objective']}")


def _judge(fitter: Fitter, head: Head, sets: tuple[ImageSet, ImageSet]) -> dict[str, Any]:
    """Print and return the accuracy of both [cls], mean and the head on held-out images, with the difference to the stronger.

    Which [cls] is the stronger is chosen on training images.
    """
    with needs("eval", "measuring accuracy (leave it out with --no-judge)"):
        from mimeval.baselines import leave_one_out
        from mimeval.rivals import judge
    from mimexport.fitting.fitter import plain_head
    from mimexport.fitting.images import labels_to_judge
    from mimexport.norms import default_norm

    names = ("training", "held-out")
    tokens = [fitter.tokens(part.images, part.digest, name) for part, name in zip(sets, names, strict=True)]
    norms: dict[str, tuple[TokenNorm, ...]] = {
        "mean": (default_norm("mean", fitter.loaded.timm_name, fitter.loaded.sha256),)
    }
    if fitter.backbone.shape.has_cls:
        norms = {"cls": get_args(TokenNorm)} | norms
    rivals = {f"{agg} {norm}": plain_head(agg, fitter, norm) for agg, wanted in norms.items() for norm in wanted}
    if head.agg not in norms:
        rivals[head.agg] = head
    features = {
        name: (fitter.vectors(rival, tokens[0], whitened=False), fitter.vectors(rival, tokens[1], whitened=False))
        for name, rival in rivals.items()
    }
    labels = labels_to_judge(*sets)
    candidates = [name for name in features if name.startswith("cls ")]
    strongest = max(candidates, key=lambda name: leave_one_out(features[name][0], labels[0]).mean(), default=None)
    if strongest is not None:  # first: the others are compared with it
        features = {strongest: features[strongest]} | features
    figures: dict[str, Any] = {"judged_on": len(sets[1].images)}
    for standing in judge(features, *labels):
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
