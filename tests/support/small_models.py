"""Small backbones of every class, including unusual ones, with random weights in all parameters."""

from __future__ import annotations

import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

from mimexport.backbone import Backbone
from mimexport.weights import _shake_constants

_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
_ROPE = {"use_rot_pos_emb": True, "use_abs_pos_emb": False}

SMALL_MODELS = {
    "vit": lambda: VisionTransformer(**_SMALL),
    "vit without cls": lambda: VisionTransformer(**_SMALL, class_token=False, global_pool="avg", fc_norm=False),
    "vit with registers": lambda: VisionTransformer(**_SMALL, reg_tokens=4, no_embed_class=True, init_values=0.1),
    "vit with qk norm": lambda: VisionTransformer(**_SMALL, qk_norm=True, scale_attn_norm=True, qkv_bias=False),
    "vit with pool norm": lambda: VisionTransformer(**_SMALL, global_pool="avg"),
    "vit with post norm": lambda: VisionTransformer(**_SMALL, block_fn=ResPostBlock),
    "vit with gated attention": lambda: _gated(VisionTransformer(**_SMALL)),
    "vit on an oblong grid": lambda: VisionTransformer(**_SMALL | {"img_size": (32, 48)}),
    "eva": lambda: Eva(**_SMALL, **_ROPE, swiglu_mlp=True, scale_mlp=True),
    "eva with split projections": lambda: Eva(**_SMALL, **_ROPE, qkv_fused=False, scale_attn_inner=True),
    "eva with post norm": lambda: Eva(**_SMALL, use_post_norm=True, init_values=None),
    "eva with mixed rope": lambda: Eva(**_SMALL, **_ROPE, rope_type="mixed", attn_type="rope"),
    "eva like dinov3": lambda: Eva(
        **_SMALL,
        **_ROPE,
        rope_type="dinov3",
        rope_rotate_half=True,
        num_reg_tokens=4,
        init_values=0.1,
        use_fc_norm=False,
    ),
    "beit": lambda: Beit(**_SMALL, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1),
    "beit with shared bias": lambda: Beit(**_SMALL, use_shared_rel_pos_bias=True, global_pool="token"),
    "beit with both biases": lambda: Beit(**_SMALL, use_shared_rel_pos_bias=True, use_rel_pos_bias=True),
    "hiera": lambda: timm.create_model("hiera_tiny_224", img_size=64, num_classes=0, stages=(1, 1, 1, 2), embed_dim=24),
}


def _gated(model):
    """Add gated attention, which no timm model enables yet."""
    for block in model.blocks:
        block.attn.gate = nn.Linear(48, 48)
    return model


BACKBONES = {
    "vit_base_patch16_224.mae": {"depth": 2},
    "vit_large_patch16_224.mae": {"depth": 2},
    "vit_huge_patch14_gap_224.in22k_ijepa": {"depth": 2},
    "hiera_tiny_224.mae": {"stages": (1, 1, 1, 2)},
    "eva02_tiny_patch14_224.mim_in22k": {"depth": 2},
    "beit3_base_patch16_224.pt": {"depth": 2},
    "vit_small_patch14_reg4_dinov2.lvd142m": {"depth": 2},
    "vit_small_patch16_dinov3.lvd1689m": {"depth": 2},
    "vit_base_patch16_siglip_224.v2_webli": {"depth": 2},
}
"""Real timm models, one of each class, with arguments that make them shallow."""


def make_small(name):
    torch.manual_seed(0)
    model = SMALL_MODELS[name]().eval()
    _shake_constants(model)
    return model


def images_for(model, count=3):
    """Return random images of the model's size, float32 (count, 3, H, W)."""
    height, width = (64, 64) if type(model).__name__ == "Hiera" else model.patch_embed.img_size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def timm_tokens(model, images):
    """Return timm's own tokens after the last block, without norm: prefix (B, P, D) or None, and patches (B, N, D)."""
    if type(model).__name__ == "Hiera":
        return None, model.forward_intermediates(images, indices=1, output_fmt="NHWC", intermediates_only=True)[
            0
        ].flatten(1, 2)
    found = model.forward_intermediates(
        images, indices=1, norm=False, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
    )[0]
    patches, prefix = found if isinstance(found, tuple) else (found, None)
    return prefix, patches


def opened(model, images):
    """Return the backbone of `model` and the tokens that enter its last block."""
    backbone = Backbone(model)
    with torch.no_grad():
        return backbone, backbone(images)
