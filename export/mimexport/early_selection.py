"""The choice of the patches that stay in the encoder, made inside the graph.

A fixed rule is an index that is a constant; a rule by content is a score and TopK. Scores are in float32 whatever the
encoder computes in.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from mimexport.blocks import take
from mimexport.families import Shape
from mimexport.grid import center_order, closeness_to_center
from mimexport.keep import FIXED, PIXELS, SIMILARITY
from mimruntime.manifest import Keep

_TIE = 0.01
"""By so much of its score the patch farthest from the centre falls behind the nearest. Blank patches score the same, and
each engine would choose among them in its own way."""
_BLANK = 1e-4
"""Variance of normalised pixels, about half a grey level squared; patches far below it score the same."""

_ALIKE, _SHORT = 1e-4, 1e-12
"""Distance 1 − cosine far below which tokens score the same, and the smallest product of lengths that divides."""


class Encoded(NamedTuple):
    """Tokens on their way through the encoder.

    Attributes:
        tokens: (B, S, D), prefix first.
        kept: place in the grid of every patch, int64: (k,) the same for every image, or (B, k); None where all are there,
            row by row.

    """

    tokens: Tensor
    kept: Tensor | None = None


class EarlySelection(nn.Module):
    """Which patches stay before which block.

    Args:
        keep: how many stay before which block, and by which rule.
        shape: of the backbone, before anything is dropped.
        positions: (P + N, D), added to the patches; its first rows are the prefix tokens, ready.

    Attributes:
        fixed: whether the same patches stay in every image.

    """

    positions: Tensor

    def __init__(self, keep: Keep, shape: Shape, positions: Tensor) -> None:
        super().__init__()
        self.fixed = keep.by in FIXED
        self._by_pixels = keep.by == PIXELS
        self._by_similarity = keep.by == SIMILARITY
        self._counts = {stage.block: stage.patches for stage in keep.stages}
        self._prefix = shape.prefix
        self.register_buffer("positions", positions, persistent=False)
        if self.fixed:
            self._fix(FIXED[keep.by](shape.grid))
            return
        rank = center_order(shape.grid).argsort()
        weights = 1 - _TIE * rank / len(rank)
        if keep.by == "center-norm":  # of squared lengths, so that the order is that of length × closeness
            weights = weights * closeness_to_center(shape).clamp_min(1e-6).square()
        self._weights = weights  # no buffer, see `_apply`

    def _apply(self, *given: Any, **named: Any) -> Self:
        """Let the weights follow the encoder to its device, but not into its precision."""
        super()._apply(*given, **named)
        if not self.fixed:
            self._weights = self._weights.to(self.positions.device)
        return self

    def _fix(self, order: Tensor) -> None:
        before = torch.arange(len(order))
        for block, count in self._counts.items():
            kept = order[:count].sort().values
            self.register_buffer(f"kept{block}", kept, persistent=False)
            self.register_buffer(f"chosen{block}", torch.searchsorted(before, kept), persistent=False)
            before = kept

    def fixed_rows(self, block: int) -> Tensor | None:
        """Return the rows (S',) of the full grid's tokens that a fixed rule leaves before a block; None: as before."""
        return self.rows_of(getattr(self, f"kept{block}")) if block in self._counts else None

    def rows_of(self, kept: Tensor) -> Tensor:
        """Return the rows of the full grid's tokens (B, P + N, D) that the prefix and the kept patches are."""
        prefix = torch.arange(self._prefix, device=kept.device)
        return torch.cat([prefix.expand(*kept.shape[:-1], -1), kept + self._prefix], -1)

    def score_pixels(self, patches: Tensor) -> Tensor | None:
        """Return the score (B, N) of normalised patches (B, N, p · p · 3), None where their pixels do not decide."""
        if not self._by_pixels:
            return None
        pixels = patches.float().unflatten(-1, (-1, 3))
        variance = (pixels - pixels.mean(2, keepdim=True)).square().mean((2, 3))
        return (variance + _BLANK) * self._weights

    def before_embedding(self, patches: Tensor, scores: Tensor | None) -> Encoded:
        """Return the patches that are embedded: those left before block 0, where that is known before; see `drop_before`."""
        if 0 not in self._counts or not (self.fixed or self._by_pixels):
            return Encoded(patches)
        _, kept = self._choose(0, Encoded(patches), scores)
        return Encoded(take(patches, kept), kept)

    def place(self, embedded: Tensor, kept: Tensor | None) -> Tensor:
        """Return the tokens (B, P + n, D) of embedded patches (B, n, D), prefix and positions added."""
        table = self.positions[self._prefix :]
        patches = embedded + (table if kept is None else table[kept])
        return torch.cat([self.positions[: self._prefix].expand(patches.shape[0], -1, -1), patches], 1)

    def drop_before(self, block: int, entering: Encoded, scores: Tensor | None) -> Encoded:
        """Return what is left of the tokens before a block.

        Args:
            block: its number.
            entering: what would enter it.
            scores: what `score_pixels` gave.

        """
        left = self._counts.get(block)
        if left is None or left == entering.tokens.shape[1] - self._prefix:
            return entering
        tokens = entering.tokens
        chosen, kept = self._choose(block, entering, scores)
        return Encoded(torch.cat([tokens[:, : self._prefix], take(tokens[:, self._prefix :], chosen)], 1), kept)

    def _choose(self, block: int, entering: Encoded, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the chosen ones among the patches that are there, and their places in the grid."""
        if self.fixed:
            return getattr(self, f"chosen{block}"), getattr(self, f"kept{block}")
        kept = entering.kept
        if scores is None:
            scores = self._score_tokens(entering.tokens[:, self._prefix :].float(), kept)
        elif kept is not None:
            scores = scores.gather(1, kept)
        chosen = self._best(scores, self._counts[block])
        return chosen, chosen if kept is None else kept.gather(1, chosen)

    def _score_tokens(self, tokens: Tensor, kept: Tensor | None) -> Tensor:
        """Return the score (B, n) of patch tokens (B, n, D) in float32, at their places `kept` in the grid."""
        energy = tokens.square().sum(-1)
        if self._by_similarity:
            mean = tokens.mean(1, keepdim=True)
            lengths = (energy * mean.square().sum(-1)).sqrt().clamp_min(_SHORT)
            worth = 1 - (tokens * mean).sum(-1) / lengths + _ALIKE
        else:
            worth = energy
        return worth * (self._weights if kept is None else self._weights[kept])

    @staticmethod
    def _best(scores: Tensor, count: int) -> Tensor:
        return scores.topk(count, dim=1).indices
