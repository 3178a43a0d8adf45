"""Checkpoint files: read without running what they hold, unwrapped, and loaded into a model with every key accounted for."""

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

# Parts of published checkpoints that are no part of the encoder: decoders and heads of pretraining, classifiers.
_NOT_BACKBONE = (
    "decoder", "mask_token", "head.", "head_dist.", "fc_norm_head.", "lm_head.", "proj_head.", "predictor.",
    "attn_pool.",
)  # fmt: skip
_CONTAINERS = ("model", "model_state", "state_dict", "model_ema", "module", "teacher", "target_encoder")
_ANCHOR = "patch_embed."
"""Every supported class has tensors of this name: what stands before it in a checkpoint is the training code's prefix."""
_MOST_PREFIX = 5
"""Rows by which position tables of one image size differ: [cls] and four registers have one, or have none."""
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [argparse.Namespace]
"""Classes beside tensors that may be in a checkpoint: a bag of options, without code. MAE's checkpoints have one."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file without running any code it may hold.

    Args:
        path: `.safetensors`, or a file of `torch.save`; beside tensors, plain data and `argparse.Namespace` may be in it.

    Raises:
        WeightsError: missing, truncated, of another format, or a pickle of more than tensors.

    """
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # of pickle protocols, to a user who did not write the file
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path)) from error
    except Exception as error:  # an unpickler that meets a cut file fails in many ways
        raise WeightsError(f"{path} is not a readable checkpoint, damaged or cut short: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded


def load_into(model: nn.Module, checkpoint: Mapping[str, Any], where: str) -> list[str]:
    """Load a checkpoint into `model`, keys mapped by timm's own filter; nothing may be missing or left over.

    Args:
        model: a timm model.
        checkpoint: what `read_checkpoint` gave.
        where: it came from, for errors.

    Returns:
        What a user should know of how it was read, a line each.

    Raises:
        WeightsError: it does not fit, or holds NaN or infinity.

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
    """Return the encoder's tensors, out of the containers and the key prefix of training code, and what was done.

    Args:
        checkpoint: what `read_checkpoint` gave.
        own: the keys of the model they are for.

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
        notes.append(f"keys of the checkpoint begin with '{prefix}'; that was taken away")
    # Here and not after timm's filter: it takes any checkpoint with a mask token for DINOv2's.
    return {key: value for key, value in tensors.items() if _belongs(key, own)}, notes


def has_pool_norm(checkpoint: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint keeps its norm after an average pool (`fc_norm`), as fine-tuned MAE does."""
    tensors, _ = unwrap(checkpoint, frozenset({"fc_norm.weight"}))
    return "fc_norm.weight" in tensors and "norm.weight" not in tensors


def first_line(error: BaseException) -> str:
    """Return what an error of a library says, in one line of 300 characters at most."""
    text = "" if isinstance(error, KeyError) else str(error)  # a missing key alone says nothing
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__


def _common_prefix(keys: Set[str]) -> str:
    """Return what stands before `patch_embed.` in the keys of the encoder.

    Raises:
        WeightsError: several encoders stand side by side, such as a student and a teacher.

    """
    found = {key[: key.index(_ANCHOR)] for key in keys if _ANCHOR in key}
    found = {prefix for prefix in found if prefix == "" or prefix.endswith(".")}
    shortest = min(found, key=lambda prefix: (len(prefix), prefix), default="")
    if others := sorted(prefix for prefix in found if not prefix.startswith(shortest)):
        raise WeightsError(
            f"the checkpoint holds several encoders ('{shortest}', '{others[0]}'); save the tensors of one of them"
        )
    return shortest


def _resampling(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """Return a line where the position table is of another image size, which timm resamples."""
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
    if start != b"PK" and start[:1] != b"\x80":  # neither a zip nor a pickle: a page of HTML, say
        return f"{path} is not a checkpoint: {size:,} bytes that start with {start!r}; was its download cut off?"
    return f"{path} holds more than tensors and is refused (a pickle can run code); save its state_dict as safetensors"


def _belongs(key: str, own: Set[str]) -> bool:
    """Tell whether a tensor is the encoder's: Hiera's last norm is called a head, SigLIP's pool is part of it."""
    return key in own or not key.startswith(_NOT_BACKBONE)


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:5])
    return f"{len(keys)} keys: {shown}" + (" …" if len(keys) > 5 else "")
