"""The command `mimexport known-answers`."""

from __future__ import annotations

from pathlib import Path

import click

from mimeval.cli.options import CACHE_FOLDER, DATA, DEVICE, OpenTorchSide
from mimeval.cli.progress import ConsoleProgress
from mimruntime.cli.command import Command, option
from mimruntime.cli.options import PATH
from mimruntime.errors import needs


@click.command(
    "known-answers",
    cls=Command,
    section="Evaluate",
    examples=(
        "mimexport known-answers mae-tiny --data zip:tiny-imagenet-64.zip",
        "mimexport known-answers mae-small --data zip:tiny-imagenet-64.zip --weights mae_small.safetensors",
    ),
)
@click.argument("model")
@DATA
@option("--weights", type=PATH, metavar="FILE", help="Checkpoint instead of the hub.")
@CACHE_FOLDER
@DEVICE
@click.pass_obj
def known_answers_command(
    open_torch_side: OpenTorchSide, model: str, data: str, weights: Path | None, cache: Path, device: str
) -> int:
    """Check that the known accuracies of MODEL are reproduced.

    These are k-NN accuracies of [cls] and mean, raw and after the final norm, in torch. SPEC is as in `mimexport eval`.

    Exit status: 0 all are reproduced within their tolerance, 1 one is not (or an error).
    """
    with needs("eval", "an evaluation"):
        from mimeval.accelerator import accelerated
        from mimeval.datasets import open_dataset
        from mimeval.feature_store import FeatureStore
        from mimeval.known_answers import check, find, lines

    known = find(model)
    cache = cache.expanduser()
    shown = ConsoleProgress()
    dataset = open_dataset(data, cache=cache, limit=known.images, train_limit=known.training)
    side = open_torch_side(weights, (), device=device)
    shown.say(f"torch computes on {side.device_text}")
    store = FeatureStore(cache / "features", shown.say, shown.progress)
    with accelerated(side.accelerator):
        found = list(
            check(known, dataset, lambda agg: side.build_plain(model, agg, cache / "baselines"), side.open, store)
        )
    click.echo("\n".join([*lines(known, found), f"known from: {known.source}"]))
    return 0 if all(one.met for one in found) else 1
