"""The table of short names for backbones. Any other name is a timm model name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Alias:
    """A backbone with a short name.

    Attributes:
        timm_name: architecture and pretrained tag in timm.
        size: edge of the square input, px.
        patch: edge of the area of one output patch token, px.
        tokens: number of patch tokens at the output.
        dim: width of a token.
        license: licence of the weights.
        note: remark shown by `mimexport models`.
        kwargs: further arguments of `timm.create_model`.
        embedded: file in `assets` with the weights; the wheel does not include large ones.
        sha256: digest of those weights (`loaded_model.tensors_sha256`).
        config: values of timm's data configuration to replace by those used in training.

    """

    timm_name: str
    size: int
    patch: int
    tokens: int
    dim: int
    license: str
    note: str = ""
    kwargs: dict[str, Any] = field(default_factory=dict)
    embedded: str | None = None
    sha256: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


_CC = "cc-by-nc-4.0"
_APACHE = "apache-2.0"
_MIT = "mit"
_DINOV3 = "dinov3-license"
_RESEARCH = "research-only"
_TINY = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 12, "num_heads": 3}
_SMALL = {"img_size": 64}
# SimMIM's ViT: BEiT's architecture with one bias table shared by all blocks and no position embedding.
_SIMMIM = {"global_pool": "token", "use_abs_pos_emb": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_FILE = "not on a hub: give the checkpoint with --weights"
_CONTROL = "control: its [cls] is already good"

ALIASES: dict[str, Alias] = {
    "mae-tiny": Alias(
        "vit_tiny_patch16_224",
        64,
        8,
        64,
        192,
        _RESEARCH,
        "embedded; a demonstration",
        _TINY,
        "mae_tiny_patch8_64.safetensors",
        "b8932bdbfcf11193b7f1f88bac2e670b8053997e7382b2c6bf029beebc2a6daf",
        {**_IMAGENET, "crop_pct": 1.0},
    ),
    "mae-small": Alias(
        "vit_small_patch8_224",
        64,
        8,
        64,
        384,
        _RESEARCH,
        "embedded; a demonstration; its weights are not in the wheel",
        _SMALL,
        "mae_small_patch8_64.safetensors",
        "29e8366890894c0e669768848fab217e3e43926c4d09bc9f678a6c443427e305",
        {**_IMAGENET, "crop_pct": 1.0},
    ),
    "mae-s16": Alias("vit_small_patch16_224", 224, 16, 196, 384, "not stated", _FILE, config=_IMAGENET),
    "mae-b16": Alias("vit_base_patch16_224.mae", 224, 16, 196, 768, _CC),
    "mae-l16": Alias("vit_large_patch16_224.mae", 224, 16, 196, 1024, _CC),
    "mae-h14": Alias("vit_huge_patch14_224.mae", 224, 14, 256, 1280, _CC),
    "ijepa-h14": Alias("vit_huge_patch14_gap_224.in22k_ijepa", 224, 14, 256, 1280, _CC, "no [cls]"),
    "ijepa-h14-in1k": Alias("vit_huge_patch14_gap_224.in1k_ijepa", 224, 14, 256, 1280, _CC, "no [cls]"),
    "ijepa-g16": Alias("vit_giant_patch16_gap_224.in22k_ijepa", 224, 16, 196, 1408, _CC, "no [cls]"),
    "hiera-mae-t": Alias("hiera_tiny_224.mae", 224, 32, 49, 768, _CC, "no [cls]"),
    "hiera-mae-s": Alias("hiera_small_224.mae", 224, 32, 49, 768, _CC, "no [cls]"),
    "hiera-mae-b": Alias("hiera_base_224.mae", 224, 32, 49, 768, _CC, "no [cls]"),
    "hiera-mae-bplus": Alias("hiera_base_plus_224.mae", 224, 32, 49, 896, _CC, "no [cls]"),
    "hiera-mae-l": Alias("hiera_large_224.mae", 224, 32, 49, 1152, _CC, "no [cls]"),
    "hiera-mae-h": Alias("hiera_huge_224.mae", 224, 32, 49, 2048, _CC, "no [cls]"),
    "eva02-mim-t14": Alias("eva02_tiny_patch14_224.mim_in22k", 224, 14, 256, 192, _MIT),
    "eva02-mim-s14": Alias("eva02_small_patch14_224.mim_in22k", 224, 14, 256, 384, _MIT),
    "eva02-mim-b14": Alias("eva02_base_patch14_224.mim_in22k", 224, 14, 256, 768, _MIT),
    "eva02-mim-l14": Alias("eva02_large_patch14_224.mim_in22k", 224, 14, 256, 1024, _MIT),
    "beit3-b16": Alias("beit3_base_patch16_224.pt", 224, 16, 196, 768, _APACHE),
    "beit3-l16": Alias("beit3_large_patch16_224.pt", 224, 16, 196, 1024, _APACHE),
    "beitv2-b16": Alias("beitv2_base_patch16_224.in1k_ft_in22k", 224, 16, 196, 768, _APACHE, "fine-tuned"),
    "simmim-b16": Alias(
        "beit_base_patch16_224.in22k_ft_in22k",
        224,
        16,
        196,
        768,
        _MIT,
        _FILE,
        _SIMMIM,
        # Pixels as in SimMIM's own data_simmim.py and data_finetune.py; BEiT's mean and std are 0.5.
        config={**_IMAGENET, "crop_pct": 0.875},
    ),
    "dino-s16": Alias("vit_small_patch16_224.dino", 224, 16, 196, 384, _APACHE, _CONTROL),
    "dino-b16": Alias("vit_base_patch16_224.dino", 224, 16, 196, 768, _APACHE, _CONTROL),
    "dino-s8": Alias("vit_small_patch8_224.dino", 224, 8, 784, 384, _APACHE, _CONTROL),
    "dino-b8": Alias("vit_base_patch8_224.dino", 224, 8, 784, 768, _APACHE, _CONTROL),
    "dinov2-s14": Alias("vit_small_patch14_dinov2.lvd142m", 518, 14, 1369, 384, _APACHE, _CONTROL),
    "dinov2-b14": Alias("vit_base_patch14_dinov2.lvd142m", 518, 14, 1369, 768, _APACHE, _CONTROL),
    "dinov2-l14": Alias("vit_large_patch14_dinov2.lvd142m", 518, 14, 1369, 1024, _APACHE, _CONTROL),
    "dinov2-s14-reg": Alias("vit_small_patch14_reg4_dinov2.lvd142m", 518, 14, 1369, 384, _APACHE, _CONTROL),
    "dinov2-b14-reg": Alias("vit_base_patch14_reg4_dinov2.lvd142m", 518, 14, 1369, 768, _APACHE, _CONTROL),
    "dinov2-l14-reg": Alias("vit_large_patch14_reg4_dinov2.lvd142m", 518, 14, 1369, 1024, _APACHE, _CONTROL),
    "dinov3-s16": Alias("vit_small_patch16_dinov3.lvd1689m", 256, 16, 256, 384, _DINOV3, _CONTROL),
    "dinov3-b16": Alias("vit_base_patch16_dinov3.lvd1689m", 256, 16, 256, 768, _DINOV3, _CONTROL),
    "dinov3-l16": Alias("vit_large_patch16_dinov3.lvd1689m", 256, 16, 256, 1024, _DINOV3, _CONTROL),
    "siglip2-b16": Alias("vit_base_patch16_siglip_224.v2_webli", 224, 16, 196, 768, _APACHE, "control; no [cls]"),
    "siglip2-l16": Alias("vit_large_patch16_siglip_256.v2_webli", 256, 16, 256, 1024, _APACHE, "control; no [cls]"),
}
