"""Which score and how many patches `topk` takes, said by two views of images without labels, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mimexport.aggregators import Aggregator, make_aggregator
from mimexport.aggregators.base import Scorable
from mimexport.aggregators.topk import LEARNED, SCORES
from mimexport.backbone import Backbone
from mimexport.errors import FitError
from mimexport.fitting.stored_features import pool_all
from mimexport.fitting.tokens import Tokens
from mimexport.fitting.unlabelled import SHRINKAGE, two_view_recall
from mimexport.whitening import fit_two_view

SHARES = ("25%", "50%", "75%", "100%")
_HELD_OUT = 4000
_TWO_SIDED = 1.96
"""Standard errors in half of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice, and how well two views of an image find each other with it (no labels).

    Attributes:
        score: name of the patches' score.
        k: patches that are kept.
        recall: share of the pairs that find each other.
        pairs: on which it was measured.

    """

    score: str
    k: int
    recall: float
    pairs: int

    @property
    def half_width(self) -> float:
        """Half of the recall's 95 % interval."""
        return float(_TWO_SIDED * (self.recall * (1 - self.recall) / self.pairs) ** 0.5)

    def __str__(self) -> str:
        """Return it for people."""
        return f"{self.score}, k {self.k} ({100 * self.recall:.1f} % \u00b1 {100 * self.half_width:.1f})"


def rank_topk(
    w: Tensor,
    views: tuple[Tokens, Tokens],
    backbone: Backbone,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Candidate]:
    """Return every score and k for `topk`, best first by the recall of two whitened views of held-out images.

    Args:
        w: (D,), the learned scorer.
        views: tokens of two views of the same images.
        backbone: theirs.
        progress: called with scores done and in all.

    """
    shape = backbone.shape
    scores = [name for name in (*SCORES, LEARNED) if name != "cls-attention" or shape.has_cls]
    ranked = []
    for done, score in enumerate(scores):
        aggregators = [make_aggregator("topk", shape, {"k": share, "score": score}) for share in SHARES]
        if score == LEARNED:
            for aggregator in aggregators:
                load_scorer(aggregator, w)
        pooled = zip(aggregators, *(pool_all(aggregators, view, backbone) for view in views), strict=True)
        pairs = held_out(len(views[0]))
        ranked += [Candidate(str(score), int(one.params["k"]), whitened_recall(*two), pairs) for one, *two in pooled]
        progress(done + 1, len(scores))
    return sorted(ranked, key=lambda one: -one.recall)


def best_learned(ranking: Sequence[Candidate], patches: int) -> Candidate:
    """Return the best candidate of the learned score; with all patches there is no choice left, it would be the mean."""
    return next(one for one in ranking if one.score == LEARNED and one.k < patches)


def explain_choice(ranking: Sequence[Candidate], chosen: Candidate, asked_k: object = None) -> str:
    """Return why `chosen` is taken of a ranking, in a sentence."""
    best = ranking[0]
    if asked_k is not None:
        return f"learned, k {asked_k}: as asked for; the best here is {best}"
    if chosen is best:
        return f"{chosen}: the best"
    if best.recall - chosen.recall <= best.half_width:
        return f"{chosen}: it is learned, and within the interval of the best, {best}"
    return (
        f"{chosen}: the best that is learned and leaves patches out; {best} is better by more than its interval and needs"
        f" no head: mimexport build --agg topk --score {best.score} --k {best.k}"
    )


def whitened_recall(first: Tensor, second: Tensor) -> float:
    """Fit the whitening on one half of the images' views (n, D), and return how well those of the other half match."""
    half = len(first) // 2
    mean, matrix = fit_two_view(torch.cat([first[:half], second[:half]]), first[:half], second[:half], SHRINKAGE)
    held = slice(half, half + _HELD_OUT)
    return two_view_recall((first[held] - mean) @ matrix, (second[held] - mean) @ matrix)


def held_out(images: int) -> int:
    """Return on how many of so many images `whitened_recall` measures."""
    return min(images - images // 2, _HELD_OUT)


def load_scorer(aggregator: Aggregator, w: Tensor) -> None:
    """Give an aggregator its scorer (D,).

    Raises:
        FitError: it has none.

    """
    if not isinstance(aggregator, Scorable):
        raise FitError(f"{type(aggregator).__name__} has no scorer to learn without labels")
    aggregator.load_scorer(w)
