"""topk: the mean of the k best-scoring patches; most scores select them before the last block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimexport.aggregators.base import Aggregator, Pooled
from mimexport.backbone import Shape
from mimexport.blocks import take
from mimexport.counts import parse_count
from mimexport.features import Features
from mimexport.grid import closeness_to_center
from mimruntime.errors import OptionError, UnknownNameError


def _input_norm(features: Features, _: Tensor) -> Tensor:
    return features.entering_energy


def _center_norm(features: Features, closeness: Tensor) -> Tensor:
    # The energy is a squared length, so the closeness is squared too: the order is that of length × closeness.
    return features.entering_energy * closeness.square()


def _output_norm(features: Features, _: Tensor) -> Tensor:
    return features.raw_patches.square().sum(-1)


def _cls_attention(features: Features, _: Tensor) -> Tensor:
    return features.cls_attention.mean(1)


LEARNED = "learned"


SCORES = {
    "center-norm": _center_norm,
    "input-norm": _input_norm,
    "norm": _output_norm,
    "cls-attention": _cls_attention,
}
"""Patch scores (B, N), larger is better, from the features and the closeness to the centre, (N,) or (B, N).

input-norm: length of the token that enters the last block. center-norm: input-norm times the closeness to the centre.
norm: length of the token that leaves the last block. cls-attention: attention from [cls], averaged over heads.
"""


class TopK(Aggregator):
    """Mean of the k best-scoring patches.

    All scores but `norm` and `learned` are known before the last block. The block then computes only the chosen rows,
    which gives the same result at lower cost.

    Args:
        shape: of the backbone.
        k: a count ("49") or a share of the patches ("50%"); fixed in the graph.
        score: a name in `SCORES`, or "learned": a linear function of the raw patch token, fitted without labels.

    """

    formula = "1/k Σ x_i over the k patches of best score"
    closeness: Tensor

    def __init__(self, shape: Shape, *, k: str | int = "75%", score: str = "center-norm") -> None:
        super().__init__(shape)
        if score not in SCORES and score != LEARNED:
            raise UnknownNameError("score", score, [*SCORES, LEARNED])
        if score == "cls-attention" and not shape.has_cls:
            raise OptionError("score cls-attention needs a [cls] token, this backbone has none; use --score input-norm")
        self.score = score
        self.k = parse_count("--k", str(k), shape.patches)
        # A buffer, because a tensor computed while tracing would add operators to the graph. Clamped above 0, because with
        # 0 all corners would score the same and each engine would break the tie differently.
        self.register_buffer("closeness", closeness_to_center(shape).clamp_min(1e-6), persistent=False)
        self.scorer = nn.Linear(shape.dim, 1, bias=False) if score == LEARNED else None

    @property
    def params(self) -> dict[str, str | int | float | bool]:
        """See base class."""
        return {"k": self.k, "score": self.score}

    def load_scorer(self, w: Tensor) -> None:
        """See `mimexport.aggregators.base.Scorable`."""
        if self.scorer is None:
            raise OptionError(f"topk with score {self.score} has no scorer to load")
        with torch.no_grad():
            self.scorer.weight.copy_(w.unsqueeze(0))

    @property
    def reads_all(self) -> bool:
        """See base class."""
        return self.score in {"norm", LEARNED}

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        scores = (
            self.scorer(features.raw_patches).squeeze(-1)
            if self.scorer
            else SCORES[self.score](features, features.of_patches(self.closeness))
        )
        index = scores.topk(self.k, dim=1).indices
        # If the score was computed from the block's output, the rows exist already.
        mean = take(features.patches, index).mean(1) if self.reads_all else features.mean_of(index)
        return Pooled(mean, torch.zeros_like(scores).scatter(1, index, 1 / self.k))
