"""Read checkpoint files without running code from them, and load them into a model; no key may be missing or left over."""

from __future__ import annotations

import argparse
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mimexport.errors import WeightsError

# Key prefixes in published checkpoints that do not belong to the encoder: decoders, pretraining heads, classifiers.
_NOT_BACKBONE = (
    "decoder", "mask_token", "head.", "head_dist.", "fc_norm_head.", "lm_head.", "proj_head.", "predictor.",
    "attn_pool.",
)  # fmt: skip
_CONTAINERS = ("model", "model_state", "state_dict", "model_ema", "module", "teacher", "target_encoder")
_ANCHOR = "patch_embed."
"""Every supported class has tensors with this name. Text before it in a key is a prefix of the training code."""
_MOST_PREFIX = 5
"""Most rows by which position tables of one image size may differ: rows for [cls] and four registers may be missing."""
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [argparse.Namespace]
"""Classes that a checkpoint may contain beside tensors. MAE's contain `argparse.Namespace`, which holds no code."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file without running any code in it.

    Args:
        path: `.safetensors`, or a file of `torch.save` with tensors, plain data and `argparse.Namespace` only.

    Raises:
        WeightsError: the file is missing, truncated or of another format, or its pickle holds other classes.

    """
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # about pickle protocols; the user did not write the file
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path)) from error
    except Exception as error:  # unpickling a truncated file raises many kinds of errors
        raise WeightsError(f"{path} is not a readable checkpoint, damaged or cut short: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded


def load_into(model: nn.Module, checkpoint: Mapping[str, Any], where: str) -> list[str]:
    """Load a checkpoint into `model`, mapping keys with timm's own filter; no key may be missing or left over.

    Args:
        model: a timm model.
        checkpoint: the result of `read_checkpoint`.
        where: its file name or source, for error messages.

    Returns:
        Notes for the user about how it was read, one line each.

    Raises:
        WeightsError: the checkpoint does not fit the model, or holds NaN or infinity.

    """
    own = model.state_dict()
    state, notes = unwrap(checkpoint, own.keys())
    if note := _resampling(state, own):
        notes.append(note)
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        mapped = filter_fn(state, model) if filter_fn else state
        mapped = {key: value for key, value in mapped.items() if _belongs(key, own.keys())}
        outcome = model.load_state_dict(mapped, strict=False)
    except (RuntimeError, AttributeError, KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"{where} does not fit the architecture: {first_line(error)}") from error
    problems = [f"{kind} {_some(keys)}" for kind, keys in zip(("missing", "unexpected"), outcome, strict=True) if keys]
    if problems:
        raise WeightsError(f"{where} does not fit the architecture: {'; '.join(problems)}")
    bad = [key for key, value in model.state_dict().items() if not bool(value.isfinite().all())]
    if bad:
        raise WeightsError(f"{where} holds NaN or infinity in {_some(bad)}")
    return notes


def unwrap(checkpoint: Mapping[str, Any], own: Set[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the encoder's tensors without containers and key prefix of the training code, and notes for the user.

    Args:
        checkpoint: the result of `read_checkpoint`.
        own: keys of the model to load into.

    """
    state: Any = checkpoint
    while (inner := next((state[key] for key in _CONTAINERS if isinstance(state.get(key), dict)), None)) is not None:
        state = inner
    if isinstance(state.get("encoder"), dict):  # I-JEPA
        state = state["encoder"]
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    prefix = _common_prefix(tensors.keys())
    notes = []
    if prefix:
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        notes.append(f"the prefix '{prefix}' was removed from the checkpoint's keys")
    # Drop other tensors before timm's filter, which treats any checkpoint with a mask token as DINOv2's.
    return {key: value for key, value in tensors.items() if _belongs(key, own)}, notes


def has_pool_norm(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint has its norm after an average pool (`fc_norm`), as fine-tuned MAE does."""
    tensors, _ = unwrap(checkpoint, frozenset({"fc_norm.weight"}))
    return "fc_norm.weight" in tensors and "norm.weight" not in tensors


def first_line(error: BaseException) -> str:
    """Return a library error's message as one line of at most 300 characters."""
    text = "" if isinstance(error, KeyError) else str(error)  # the text of a KeyError is only the key
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__


def _common_prefix(keys: Set[str]) -> str:
    """Return the text before `patch_embed.` in the encoder's keys.

    Raises:
        WeightsError: the checkpoint holds several encoders, such as a student and a teacher.

    """
    found = {key[: key.index(_ANCHOR)] for key in keys if _ANCHOR in key}
    found = {prefix for prefix in found if prefix == "" or prefix.endswith(".")}
    shortest = min(found, key=lambda prefix: (len(prefix), prefix), default="")
    if others := sorted(prefix for prefix in found if not prefix.startswith(shortest)):
        raise WeightsError(
            f"the checkpoint holds several encoders ('{shortest}', '{others[0]}'); save the tensors of only one"
        )
    return shortest


def _resampling(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """Return a note if timm will resample the position table to another image size."""
    given, wanted = state.get("pos_embed"), own.get("pos_embed")
    if given is None or wanted is None or given.ndim != wanted.ndim or given.ndim < 2:
        return None
    if abs(given.shape[-2] - wanted.shape[-2]) <= _MOST_PREFIX:
        return None
    return (
        f"the checkpoint is of another image size: its {given.shape[-2]} positions were resampled to {wanted.shape[-2]}"
        " (--image-size chooses the size)"
    )


def _refusal(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    size = path.stat().st_size
    if start != b"PK" and start[:1] != b"\x80":  # neither a zip nor a pickle, for example an HTML page
        return f"{path} is not a checkpoint: {size:,} bytes that start with {start!r}; check the download"
    return f"{path} holds more than tensors and is refused (a pickle can run code); save its state_dict as safetensors"


def _belongs(key: str, own: Set[str]) -> bool:
    """Return whether a tensor belongs to the encoder; the model's own keys always do (Hiera's last norm is `head.norm`)."""
    return key in own or not key.startswith(_NOT_BACKBONE)


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:5])
    return f"{len(keys)} keys: {shown}" + (" …" if len(keys) > 5 else "")
