"""The record of a loaded backbone: its model, weights and their origin. Every loader returns it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mimruntime.manifest import Source

NOT_STATED = "not stated"
"""Licence of weights that do not state one."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A timm model with its weights and their origin.

    Your own loader can create this record; `build` and `fit` accept it instead of a name.

    Attributes:
        model: the model with `num_classes=0`, in evaluation mode; its class is in `mimexport.families.FAMILIES`.
        name: name of the backbone, as given by the user.
        timm_name: name of the architecture, timm's if it has one.
        source: where the weights came from.
        origin: hub id, file name or seed.
        sha256: digest of the tensors; for a model in memory also of its other settings (`model_sha256`).
        license: licence of the weights.
        config: timm's data configuration (input_size, crop_pct, crop_mode, interpolation, mean, std).
        notes: notes for the user about the loading, one line each.

    """

    model: nn.Module
    name: str
    timm_name: str
    source: Source
    origin: str
    sha256: str
    license: str
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of named tensors as float32; file format and storage precision do not change it."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def model_sha256(model: nn.Module) -> str:
    """Return the digest of a model's tensors, module classes and plain attributes.

    Tensors alone do not determine the output: the number of heads, a norm's epsilon and activations are not in them.
    """
    digest = hashlib.sha256(tensors_sha256(model.state_dict()).encode())
    for name, module in sorted(model.named_modules()):
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str, tuple)) and not key.startswith("_") and key != "training"
        }
        digest.update(f"{name} {type(module).__qualname__} {sorted(plain.items())}".encode())
    return digest.hexdigest()
