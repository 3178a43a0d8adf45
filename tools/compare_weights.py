"""Compare ways to weight patches that learn nothing with their mean, on training images; write docs/results/weights.md.

    python tools/compare_weights.py ../shared/data/tiny-imagenet-64.zip --cache ~/.cache/mimexport

Each image is classified by the other images, centred and shifted, raw tokens. To try a weighting of your own, add a function to
`WEIGHTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch
from measure_aggregators import beginning
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from mimeval.baselines import leave_one_out
from mimeval.datasets import Split, open_dataset
from mimeval.datasets.shifted import KINDS, shift
from mimeval.statistics import paired_difference
from mimexport.aggregators import AGGREGATORS, make_aggregator
from mimexport.aggregators.base import Aggregator, Pooled, weighted_sum
from mimexport.features import Features
from mimexport.fitting.fitter import FitOptions, Fitter
from mimexport.fitting.sources import LazySources
from mimexport.fitting.stored_features import pool
from mimexport.grid import closeness_to_center

DOCS = Path(__file__).parents[1] / "docs" / "results" / "weights.md"
MARKER = "<!-- written by tools/compare_weights.py, below this line -->"
MODELS = ("mae-tiny", "mae-small")
Weights = Callable[[Features], Tensor]
"""Weight of each patch (B, N), at least 0; an image's weights need not sum to one."""


def best(scores: Tensor, share: float = 0.75) -> Tensor:
    """Return 1 for the patches of best score (B, N) and 0 for the others."""
    index = scores.topk(round(share * scores.shape[1]), dim=1).indices
    return torch.zeros_like(scores).scatter(1, index, 1.0)


def near(features: Features) -> Tensor:
    """Return the closeness (N,) of every patch to the centre."""
    return closeness_to_center(features.shape).clamp_min(1e-6)


def length(features: Features) -> Tensor:
    """Return the length (B, N) of the tokens that enter the last block."""
    return features.entering_energy.sqrt()


def smooth(scores: Tensor, features: Features) -> Tensor:
    """Return scores (B, N) averaged over 3×3 patches, fewer at the border."""
    return avg_pool2d(scores.unflatten(1, features.shape.grid), 3, 1, 1, count_include_pad=False).flatten(1)


def near_own_center(features: Features) -> Tensor:
    """Return the closeness (B, N) to the centre of mass of the squared lengths in each image."""
    place = torch.cartesian_prod(*(torch.arange(edge, dtype=torch.float32) for edge in features.shape.grid))
    share = features.entering_energy / features.entering_energy.sum(1, keepdim=True)
    distance = torch.cdist((share @ place).unsqueeze(1), place.expand(len(share), -1, -1)).squeeze(1)
    return 1 - distance / distance.amax(1, keepdim=True)


def unlike_mean(features: Features) -> Tensor:
    """Return 1 minus the cosine (B, N) of every patch to the mean patch."""
    mean = normalize(features.patches.mean(1, keepdim=True), dim=-1)
    return 1 - (normalize(features.patches, dim=-1) * mean).sum(-1)


WEIGHTS: dict[str, Weights] = {
    "(length × closeness) + 0.5 · length, best 75 %": lambda f: best(length(f) * (near(f) + 0.5)),
    "closeness to the image's own centre of length": near_own_center,
    "length entering the last block, smoothed over 3×3, best 75 %": lambda f: best(smooth(length(f), f)),
    "least like the mean patch, best 75 %": lambda f: best(unlike_mean(f)),
    "least attended by [cls], best 75 %": lambda f: best(-f.cls_attention.mean(1)),
    "squared length": lambda f: f.entering_energy,
}
"""Weightings that `--agg` does not offer."""
OFFERED = {
    "`topk`, the default": ("topk", {}),
    "`topk --score input-norm`": ("topk", {"score": "input-norm"}),
    "`topk --score norm`": ("topk", {"score": "norm"}),
    "`center-weighted`": ("center-weighted", {}),
    "`gem`": ("gem", {}),
}


class Weighted(Aggregator):
    """Mean of the patches by a function in `WEIGHTS`."""

    formula = "Σ w_i x_i"

    def __init__(self, shape: object, weights: Weights) -> None:
        super().__init__(shape)  # type: ignore[arg-type]
        self.weights = weights

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        weights = self.weights(features)
        return weighted_sum(features.patches, weights / weights.sum(1, keepdim=True))


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for tokens.")
@click.option("--images", default=2_000, show_default=True, help="Number of training images of each set.")
def main(archive: Path, cache: Path, images: int) -> None:
    """Write the differences in k-NN accuracy to the mean, in points."""
    centred = beginning(open_dataset(f"zip:{archive}", cache=cache), images, 1)
    sets = {"centred": centred.train, "shifted": shift(centred, tuple(KINDS)).train}
    columns = {
        f"{model}, {name}": dict(measure(model, split, cache)) for model in MODELS for name, split in sets.items()
    }
    lines = [f"| weighting | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    lines += [f"| {row} | {' | '.join(found[row] for found in columns.values())} |" for row in [*OFFERED, *WEIGHTS]]
    prose = DOCS.read_text(encoding="utf-8").split(MARKER)[0]
    text = f"{images:,} images of each set.\n\n" + "\n".join(lines)
    DOCS.write_text(f"{prose}{MARKER}\n\n{text}\n", encoding="utf-8")


def measure(model: str, split: Split, cache: Path) -> Iterator[tuple[str, str]]:
    """Yield the title of every weighting and its difference to the mean, with its interval."""
    images = LazySources(range(len(split)), split.load)
    fitter = Fitter(FitOptions(model=model, agg="mean", images=images, labels=None, digest=split.digest, cache=cache))
    tokens, shape = fitter.tokens(images, split.digest, "training"), fitter.backbone.shape

    def right(aggregator: Aggregator) -> np.ndarray:
        return leave_one_out(pool(aggregator, tokens, fitter.backbone, final=False).numpy(), split.labels)

    mean = right(AGGREGATORS["mean"](shape))
    rows = {title: make_aggregator(agg, shape, options) for title, (agg, options) in OFFERED.items()}
    rows |= {title: Weighted(shape, weights) for title, weights in WEIGHTS.items()}
    for title, aggregator in rows.items():
        found = paired_difference(right(aggregator), mean)
        click.echo(f"{model}: {title}: {100 * found.value:+.1f}", err=True)
        yield title, f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


if __name__ == "__main__":
    main()
