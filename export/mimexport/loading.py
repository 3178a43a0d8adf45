"""Load a backbone: by name, from a file, from memory, or from the user's own loader."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from mimexport.aliases import ALIASES
from mimexport.loaded_model import NOT_STATED, LoadedModel, model_sha256
from mimexport.weights import load_model
from mimruntime.errors import OptionError
from mimruntime.manifest import Interpolation


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelConfig:
    """Preprocessing settings that override timm's; None keeps timm's value.

    Attributes:
        mean: mean of the training pixels per channel, in [0, 1].
        std: standard deviation of the training pixels per channel, in the same units.
        crop_pct: share of the resized image's edge that the centre crop keeps, in (0, 1].
        interpolation: interpolation of the resize.

    """

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None

    def given(self) -> dict[str, Any]:
        """Return the settings that are not None, by timm's names."""
        values = {name: getattr(self, name) for name in ("mean", "std", "crop_pct", "interpolation")}
        return {name: value for name, value in values.items() if value is not None}


IMAGENET_PIXELS = PixelConfig(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, interpolation="bicubic")
"""ImageNet's mean and standard deviation, as MAE and most masked autoencoders use them."""


def load_any(
    model: str | nn.Module | LoadedModel,
    *,
    weights: Path | None = None,
    random_seed: int | None = None,
    size: int | None = None,
    pixels: PixelConfig = PixelConfig(),
    license: str | None = None,  # noqa: A002 - as the manifest calls it
) -> LoadedModel:
    """Return a backbone with its weights.

    Args:
        model: an alias or timm name (see `load_model`), a timm model in memory (it is copied), or a `LoadedModel`.
        weights: see `load_model`; only with a name.
        random_seed: see `load_model`; only with a name.
        size: see `load_model`; must be the model's own size unless `model` is a name.
        pixels: preprocessing settings that override timm's.
        license: licence of the weights; None takes timm's or the loader's, 'not stated' for a file or a model in memory.

    Raises:
        UnknownNameError, WeightsError, OptionError: see `load_model`.

    """
    if isinstance(model, str):
        loaded = load_model(model, weights=weights, random_seed=random_seed, size=size)
    elif isinstance(model, LoadedModel):
        loaded = replace(model, model=copy.deepcopy(model.model))  # `Backbone` modifies the model
    else:
        loaded = _from_memory(model)
    if not isinstance(model, str) and size not in {None, loaded.config["input_size"][-1]}:
        raise OptionError(f"size {size}: the model was created for {loaded.config['input_size'][-1]} px; recreate it")
    given = pixels.given()
    notes = loaded.notes
    if loaded.source in {"file", "memory"} and not {"mean", "std"} <= given.keys() and not _knows_pixels(loaded.name):
        notes += (_guess(loaded),)
    return replace(loaded, config={**loaded.config, **given}, license=license or loaded.license, notes=notes)


def model_name(model: str | nn.Module | LoadedModel) -> str:
    """Return the name of a backbone that `load_any` accepts."""
    if isinstance(model, str):
        return model
    return model.name if isinstance(model, LoadedModel) else _architecture(model)


def _from_memory(model: nn.Module) -> LoadedModel:
    """Return the record of a user's model; the model is copied because `Backbone` modifies it."""
    name = _architecture(model)
    config = timm.data.resolve_model_data_config(model)
    embed: Any = getattr(model, "patch_embed", None)
    if getattr(embed, "img_size", None) is not None:
        config["input_size"] = (3, *embed.img_size)
    return LoadedModel(
        model=copy.deepcopy(model).eval(),
        name=name,
        timm_name=name,
        source="memory",
        origin=f"a {type(model).__name__} in memory",
        sha256=model_sha256(model),
        license=NOT_STATED,
        config=config,
    )


def _architecture(model: nn.Module) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__.lower())


def _knows_pixels(name: str) -> bool:
    """Return whether the alias table has the preprocessing of backbone `name`."""
    return name in ALIASES and bool(ALIASES[name].config)


def _guess(loaded: LoadedModel) -> str:
    mean, std = (" ".join(f"{value:g}" for value in loaded.config[key]) for key in ("mean", "std"))
    return (
        f"pixels: mean {mean}, std {std} are timm's defaults for {loaded.timm_name}; MAE and most others were trained with"
        " ImageNet's values: use --data-config imagenet, or --mean and --std"
    )
