"""A backbone with its weights and all that is known of them; what every way of loading one gives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mimruntime.manifest import Source

NOT_STATED = "not stated"
"""The licence of weights that do not say theirs."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A timm model with its weights, and what is known of them.

    A loader of one's own makes this record; `build` and `fit` take it in place of a name.

    Attributes:
        model: `num_classes=0`, evaluation mode; a class in `mimexport.backbone.FAMILIES`.
        name: as asked for.
        timm_name: the architecture, in timm where it is timm's.
        source: where the weights came from.
        origin: hub id, file name or seed.
        sha256: digest of the tensors, and of whatever else decides what the model computes.
        license: of the weights.
        config: timm's data configuration (input_size, crop_pct, crop_mode, interpolation, mean, std).
        notes: what a user should know of how they were loaded, a line each.

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
    """Return the digest of named tensors as float32, the same for every file format and storage precision."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def model_sha256(model: nn.Module) -> str:
    """Return the digest of a model's tensors and of what else decides what it computes: classes and plain attributes.

    The number of heads, a layer norm's epsilon or an activation is in no tensor.
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
