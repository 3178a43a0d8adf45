"""Convert timm's data configuration to the manifest's preprocessing record and back, and to Hugging Face's preprocessor file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mimruntime.errors import OptionError
from mimruntime.manifest import Preprocess

_MODES: dict[str, Any] = {"center": "shortest", "squash": "squash"}
"""Modes of the manifest by timm's names of them."""


def preprocess_of(config: Mapping[str, Any]) -> Preprocess:
    """Return the preprocessing record of timm's data configuration.

    Raises:
        OptionError: the configuration needs a transform that is not supported.

    """
    _, height, width = config["input_size"]
    if height != width or config["crop_mode"] not in _MODES:
        raise OptionError(
            f"this backbone needs {width}×{height} px with crop mode '{config['crop_mode']}';"
            " only square inputs with 'center' or 'squash' are supported; choose another --model"
        )
    return Preprocess(
        size=height,
        resize=math.floor(height / config["crop_pct"]),
        mode=_MODES[config["crop_mode"]],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def config_of(preprocess: Preprocess) -> dict[str, Any]:
    """Return the settings in timm's data configuration of which `preprocess_of` makes this record, for a backbone of its size."""
    return {
        "crop_pct": preprocess.size
        / (preprocess.resize + 0.5),  # half a pixel, so that rounding down gives `resize` again
        "crop_mode": next(name for name, mode in _MODES.items() if mode == preprocess.mode),
        "interpolation": preprocess.interpolation,
        "mean": preprocess.mean,
        "std": preprocess.std,
    }


def write_preprocessor(folder: Path, preprocess: Preprocess) -> None:
    """Write `preprocessor_config.json` with resize and crop for Hugging Face's tools; the graph normalises the pixels itself."""
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
