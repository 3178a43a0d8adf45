"""A learned rule for early selection, without labels: a linear score of the patch token that enters the encoder.

The full encoder teaches it, by one of two signals about its final vector, the mean weighted by closeness to the centre:

- removal: how far the vector of all patches moves when one patch is left out. Every patch of every image is left out in turn.
- halves: how much nearer to the vector of all patches that of a random half is if it holds the patch.

The score is fitted by ridge regression, on the token and one bias for each place. Without the token it is a fixed order of
places. Whatever the teacher, the rule is computed inside the graph like the other rules by content.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mimexport.backbone import Backbone
from mimexport.blocks import take
from mimexport.early_selection import EarlySelection
from mimexport.embedding_model import EmbeddingModel
from mimexport.grid import closeness_to_center

RIDGE = 1e-3
"""Penalty relative to the variance of the tokens."""
_HALVES = 16
_CHUNK = 2048
"""Number of encoder passes at once."""


class Scorer(NamedTuple):
    """A linear score: weight of the token (D,) and bias of every place (N,)."""

    weight: Tensor
    bias: Tensor


class LearnedSelection(EarlySelection):
    """Selection by a `Scorer`, in place of the rule of `selection`."""

    def __init__(self, backbone: Backbone, scorer: Scorer) -> None:
        if backbone.keep is None:
            raise ValueError("this backbone keeps all patches; expected one with --keep")
        super().__init__(backbone.keep, backbone.shape, backbone.selection.positions)
        self._scorer = scorer

    def _score_tokens(self, tokens: Tensor, kept: Tensor | None) -> Tensor:
        weight, bias = (part.to(tokens.device) for part in self._scorer)
        return tokens @ weight + (bias if kept is None else bias[kept])


def learn(model: EmbeddingModel, pixels: np.ndarray, teacher: str, *, seed: int = 0) -> Scorer:
    """Return the scorer that a full encoder teaches.

    Args:
        model: keeps all patches, in float32.
        pixels: uint8 (n, H, W, 3), without labels.
        teacher: "removal" or "halves"; "places" is "halves" without the token.
        seed: of the random halves.

    """
    encoder = _Encoder(model)
    rng = np.random.default_rng(seed)
    tokens, worth = [], []
    step = max(1, _CHUNK // (encoder.patches if teacher == "removal" else _HALVES))
    for start in range(0, len(pixels), step):
        entering = encoder.enter(pixels[start : start + step])
        tokens.append(entering[:, encoder.prefix :].float())
        found = _by_removal(encoder, entering) if teacher == "removal" else _by_halves(encoder, entering, rng)
        worth.append(found / found.abs().mean(1, keepdim=True).clamp_min(1e-12))
    return _fit(torch.cat(tokens), torch.cat(worth), content=teacher != "places")


class _Encoder:
    """The full encoder, for any patches of an image."""

    def __init__(self, model: EmbeddingModel) -> None:
        self._model = model
        self.patches, self.prefix = model.backbone.shape.patches, model.backbone.shape.prefix
        self.device = model.mean.device
        self._near = closeness_to_center(model.backbone.shape).clamp_min(1e-6).to(self.device)

    def enter(self, pixels: np.ndarray) -> Tensor:
        """Return the tokens (B, P + N, D) that enter block 0."""
        model = self._model
        images = torch.from_numpy(pixels).to(self.device).float()
        patches = (model.backbone.patchify(images) - model.mean) / model.std
        return model.backbone._embed(patches.to(model.dtype))

    def vectors(self, entering: Tensor, kept: Tensor) -> Tensor:
        """Return unit vectors (B, D) of the patches `kept` (B, k)."""
        tokens = torch.cat([entering[:, : self.prefix], take(entering[:, self.prefix :], kept)], 1)
        for block in (*self._model.backbone.blocks, self._model.backbone.last_block):
            tokens = block(tokens)
        vector = (tokens[:, self.prefix :].float() * self._near[kept][..., None]).sum(1)
        return torch.nn.functional.normalize(vector, dim=1)


def _by_removal(encoder: _Encoder, entering: Tensor) -> Tensor:
    """Return for every patch (B, N) the distance that the vector moves without it."""
    count, everything = len(entering), torch.arange(encoder.patches, device=encoder.device)
    whole = encoder.vectors(entering, everything.expand(count, -1))
    others = torch.stack([everything[everything != place] for place in range(encoder.patches)])
    vectors = encoder.vectors(entering.repeat_interleave(encoder.patches, 0), others.repeat(count, 1))
    return (vectors.unflatten(0, (count, -1)) - whole[:, None]).norm(dim=-1)


def _by_halves(encoder: _Encoder, entering: Tensor, rng: np.random.Generator) -> Tensor:
    """Return for every patch (B, N) how much farther away random halves without it are than those with it."""
    count, half = len(entering), encoder.patches // 2
    everything = torch.arange(encoder.patches, device=encoder.device).expand(count, -1)
    whole = encoder.vectors(entering, everything)
    order = rng.random((count * _HALVES, encoder.patches)).argsort(1)
    kept = torch.from_numpy(order[:, :half].copy()).to(encoder.device)
    vectors = encoder.vectors(entering.repeat_interleave(_HALVES, 0), kept)
    distance = (vectors.unflatten(0, (count, -1)) - whole[:, None]).norm(dim=-1)
    inside = torch.zeros(order.shape, device=encoder.device).scatter(1, kept, 1.0).unflatten(0, (count, -1))
    with_it, without = inside.sum(1), (1 - inside).sum(1)
    return (distance[..., None] * (1 - inside)).sum(1) / without.clamp_min(1) - (distance[..., None] * inside).sum(
        1
    ) / with_it.clamp_min(1)


def _fit(tokens: Tensor, worth: Tensor, *, content: bool) -> Scorer:
    """Return the ridge regression of the worth (n, N) on tokens (n, N, D) and places, in float64 on the CPU."""
    x, y = tokens.double().cpu(), worth.double().cpu()
    center, bias = x.mean(0), y.mean(0)
    weight = torch.zeros(x.shape[-1], dtype=torch.float64)
    if content:  # within each place, so that the bias of a place costs no penalty
        flat, target = (x - center).flatten(0, 1), (y - bias).flatten()
        gram = flat.T @ flat
        penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        weight = torch.linalg.solve(gram + penalty, flat.T @ target)
    return Scorer(weight.float(), (bias - center @ weight).float())
