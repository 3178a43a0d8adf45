"""How images are made ready: timm's data configuration as this project's record, and as Hugging Face's file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mimruntime.errors import OptionError
from mimruntime.manifest import Preprocess


def preprocess_of(config: Mapping[str, Any]) -> Preprocess:
    """Translate timm's data configuration.

    Raises:
        OptionError: a transform this project does not have.

    """
    _, height, width = config["input_size"]
    modes: dict[str, Any] = {"center": "shortest", "squash": "squash"}
    if height != width or config["crop_mode"] not in modes:
        raise OptionError(
            f"this backbone wants {width}×{height} px, crop mode '{config['crop_mode']}';"
            " square inputs with 'center' or 'squash' are supported"
        )
    return Preprocess(
        size=height,
        resize=math.floor(height / config["crop_pct"]),
        mode=modes[config["crop_mode"]],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def write_preprocessor(folder: Path, preprocess: Preprocess) -> None:
    """Write `preprocessor_config.json`: resize and crop as Hugging Face's tools read it; the graph does the rest."""
    edge = preprocess.resize
    config = {
        "do_resize": True,
        "size": {"shortest_edge": edge} if preprocess.mode == "shortest" else {"height": edge, "width": edge},
        "resample": {"lanczos": 1, "bilinear": 2, "bicubic": 3}[preprocess.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": preprocess.size, "width": preprocess.size},
        "do_rescale": False,
        "do_normalize": False,
        "image_mean": preprocess.mean,
        "image_std": preprocess.std,
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
    )
