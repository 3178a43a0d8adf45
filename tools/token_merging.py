"""ToMe (Bolya et al., 'Token Merging: Your ViT But Faster', ICLR 2023), to compare with `--keep`.

Before the MLP of a block, each of the r pairs with the most similar keys is merged into one token. The token is the mean of
the pair, weighted by size: the number of patches that a token represents. Attention also weights tokens by size. There is no
training. r is a constant, so the graph is static and has no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mimexport.backbone import Backbone
from mimexport.blocks import OpenBlock, take
from mimexport.embedding_model import EmbeddingModel
from mimexport.grid import closeness_to_center


class Merged(NamedTuple):
    """Tokens (B, S, D), the number of patches in each (B, S), and the mean closeness of these to the centre (B, S)."""

    tokens: Tensor
    size: Tensor
    near: Tensor


class MergingModel(EmbeddingModel):
    """uint8 images (B, H, W, 3) -> unit vectors of merged patches, weighted by size and, if asked, closeness to the centre.

    Args:
        model: a model of a plain vision transformer with one prefix token, [cls]; its aggregator is not used.
        merge: r of every block.
        centered: whether to weight by closeness to the centre.

    """

    near: Tensor

    def __init__(self, model: EmbeddingModel, merge: Sequence[int], *, centered: bool) -> None:
        backbone: Backbone = model.backbone
        super().__init__(backbone, model.aggregator, "raw", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.mean, self.std = model.mean, model.std
        self.merge, self.centered = tuple(merge), centered
        near = closeness_to_center(backbone.shape).clamp_min(1e-6)
        self.register_buffer("near", torch.cat([torch.zeros(1), near]), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return (embedding,)."""
        return (self.pool(self.merged(pixels), centered=self.centered),)

    def merged(self, pixels: Tensor) -> Merged:
        """Return the tokens that leave the last block."""
        patches = (self.backbone.patchify(pixels.float()) - self.mean) / self.std
        tokens = self.backbone._embed(patches.to(self.dtype))
        one = torch.ones_like(tokens[..., 0], dtype=torch.float32)
        state = Merged(tokens, one, one * self.near)
        for block, pairs in zip((*self.backbone.blocks, self.backbone.last_block), self.merge, strict=True):
            state = run_block(block, state, pairs)
        return state

    def pool(self, state: Merged, *, centered: bool) -> Tensor:
        """Return the unit vectors (B, D) of merged tokens, weighted by size and, if asked, closeness to the centre."""
        shares = state.size * state.near if centered else state.size
        vector = (state.tokens[:, 1:].float() * shares[:, 1:, None]).sum(1)
        return vector / vector.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-6)


def run_block(block: OpenBlock, state: Merged, pairs: int) -> Merged:
    """Run a block that merges `pairs` pairs of tokens."""
    tokens, size, near = state
    context = block.norm1(tokens)
    query, key, value = (
        part(context).unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in (block.query, block.key, block.value)
    )
    scores = (query * block.scale) @ key.transpose(-2, -1) + size.log()[:, None, None].to(tokens.dtype)
    attended = block.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    state = Merged(tokens + block.scale1(attended), size, near)
    if pairs:
        state = merge_pairs(state, key.float().mean(1), pairs)
    out = block.scale2(block.mlp_out(block.mlp_in(block.norm2(state.tokens))))
    return Merged(state.tokens + out, state.size, state.near)


def merge_pairs(state: Merged, keys: Tensor, pairs: int) -> Merged:
    """Merge the `pairs` most similar pairs of a token at an even and one at an odd position; keep [cls], at position 0.

    Args:
        state: S tokens.
        keys: (B, S, d), the keys to compare.
        pairs: at most S // 2 - 1.

    """
    keys = keys / keys.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-6)
    similar = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
    closest, partner = similar.max(-1)
    closest = torch.cat([torch.full_like(closest[:, :1], -2), closest[:, 1:]], 1)
    order = closest.topk(closest.shape[1], dim=1).indices
    merged, left = order[:, :pairs], order[:, pairs:].sort(1).values
    target = (
        partner.gather(1, merged)[:, None] == torch.arange(keys.shape[1] // 2, device=keys.device)[None, :, None]
    ).float()

    def together(weighted: Tensor) -> Tensor:
        return torch.cat([take(weighted[:, ::2], left), weighted[:, 1::2] + target @ take(weighted[:, ::2], merged)], 1)

    size = together(state.size[..., None])
    tokens = together(state.tokens.float() * state.size[..., None]) / size
    near = together((state.near * state.size)[..., None]) / size
    return Merged(tokens.to(state.tokens.dtype), size[..., 0], near[..., 0])
