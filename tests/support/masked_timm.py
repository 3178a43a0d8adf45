"""Reference for dropped patches: timm's own blocks on all tokens, with attention to dropped patches masked."""

from __future__ import annotations

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva


@torch.no_grad()
def masked_tokens(model, images, choose):
    """Return the tokens (B, S, D) after the last block, and the grid positions (B, k) of the kept patches.

    Args:
        model: an unmodified timm model.
        images: (B, 3, H, W).
        choose: called with the index of a block, the patch tokens that enter it and the kept patches, (B, N) bool; returns
            the patches to keep, (B, N) bool.
    """
    prefix = model.num_prefix_tokens
    rope, shared = None, None
    tokens = model.patch_embed(images)
    if isinstance(model, Beit):
        tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = tokens if model.pos_embed is None else tokens + model.pos_embed
        shared = 0 if model.rel_pos_bias is None else model.rel_pos_bias()
    else:
        placed = model._pos_embed(tokens)
        tokens, rope = placed if isinstance(model, Eva) else (placed, None)
        tokens = model.norm_pre(tokens)
    left = torch.ones(len(images), tokens.shape[1] - prefix, dtype=torch.bool)
    for number, block in enumerate(model.blocks):
        left = choose(number, tokens[:, prefix:], left)
        seen = torch.cat([left.new_ones(len(left), prefix), left], 1)[:, None, None]
        mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        if isinstance(model, Beit):
            tokens = block(tokens, shared_rel_pos_bias=shared + mask)
        elif isinstance(model, Eva):
            own = rope[number] if getattr(model, "rope_mixed", False) else rope
            tokens = block(tokens, rope=own, attn_mask=mask)
        else:
            tokens = block(tokens, attn_mask=mask)
    return tokens, torch.stack([row.nonzero().flatten() for row in left])
