"""Weights of a backbone: from the package, the hub, a file, or a seed; every key accounted for."""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
import warnings
from collections.abc import Mapping, Set
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models import get_pretrained_cfg, is_model, is_model_in_modules, list_models
from timm.models.hiera import Hiera
from torch import Tensor, nn

from mimexport.aliases import ALIASES, Alias
from mimexport.errors import WeightsError
from mimruntime.errors import OptionError, UnknownNameError
from mimruntime.manifest import Source

FAMILIES = ("vision_transformer", "eva", "beit", "hiera")
"""timm modules whose models can be a backbone."""

# Parts of published checkpoints that are no part of the encoder: decoders and heads of pretraining, classifiers.
_NOT_BACKBONE = (
    "decoder", "mask_token", "head.", "head_dist.", "fc_norm_head.", "lm_head.", "proj_head.", "predictor.",
    "attn_pool.",
)  # fmt: skip
_CONTAINERS = ("model", "model_state", "state_dict", "model_ema", "module", "teacher", "target_encoder")
_PREFIXES = ("module.", "backbone.", "encoder.", "_orig_mod.")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A timm model with its weights, and what is known of them.

    Attributes:
        model: `num_classes=0`, evaluation mode.
        name: as asked for.
        timm_name: in timm.
        source: where the weights came from.
        origin: hub id, file name or seed.
        sha256: digest of the tensors.
        license: of the weights.
        config: timm's data configuration (input_size, crop_pct, crop_mode, interpolation, mean, std).

    """

    model: nn.Module
    name: str
    timm_name: str
    source: Source
    origin: str
    sha256: str
    license: str
    config: Mapping[str, Any]


def load_model(
    name: str, *, weights: Path | None = None, random_seed: int | None = None, size: int | None = None
) -> LoadedModel:
    """Make the backbone `name` and load its weights.

    Args:
        name: an alias or a timm name.
        weights: a `.safetensors` file, or a `.pth` / `.pt` / `.tar` / `.bin` read with weights-only loading.
        random_seed: draw random weights from this seed instead.
        size: edge of the square input, px; position tables are resampled to it.

    Raises:
        UnknownNameError: no such backbone.
        WeightsError: weights out of reach, unreadable, or not of this architecture.
        OptionError: a size that the patches do not divide.

    """
    alias = ALIASES.get(name) or _timm_entry(name)
    kwargs = dict(alias.kwargs) | ({"img_size": size} if size else {})
    cfg = get_pretrained_cfg(alias.timm_name)
    source: Source
    if random_seed is not None:
        torch.manual_seed(random_seed)
        model = _create(alias, kwargs)
        _shake_constants(model)
        source, origin = "random", f"seed {random_seed}"
    elif weights is not None:
        model = _create(alias, kwargs)
        _fit(model, read_checkpoint(weights), str(weights))
        source, origin = "file", weights.name
    elif alias.embedded:
        model = _create(alias, kwargs)
        _fit(model, _read_embedded(name, alias.embedded), alias.embedded)
        source, origin = "embedded", alias.embedded
    else:
        model = _fetch(alias, kwargs, name)
        source, origin = "hub", str(cfg.hf_hub_id or cfg.url)
    model = model.eval()
    config = timm.data.resolve_model_data_config(model)
    if "img_size" in kwargs:
        config["input_size"] = (3, kwargs["img_size"], kwargs["img_size"])
    config |= alias.config
    digest = tensors_sha256(model.state_dict())
    if source == "embedded" and not size and digest != alias.sha256:
        raise WeightsError(f"{origin} of this package holds other weights than those of '{name}' ({digest[:12]}…)")
    return LoadedModel(
        model=model,
        name=name,
        timm_name=alias.timm_name,
        source=source,
        origin=origin,
        sha256=digest,
        license="none (random weights)" if source == "random" else alias.license,
        config=config,
    )


def embedded_file(name: str) -> Path | None:
    """Return the file of the backbone's weights, where this installation has it."""
    alias = ALIASES.get(name)
    path = None if alias is None or alias.embedded is None else _assets() / alias.embedded
    return path if path is not None and path.is_file() else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file without running any code it may hold.

    Raises:
        WeightsError: missing, truncated, of another format, or a pickle of more than tensors.

    """
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, to a user who did not write the file
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            start = file.read(2)
        if start != b"PK" and start[:1] != b"\x80":  # neither a zip nor a pickle: a page of HTML, say
            raise WeightsError(
                f"{path} is not a checkpoint: it starts with {start!r}; was its download cut off?"
            ) from error
        raise WeightsError(
            f"{path} holds more than tensors and is refused (a pickle can run code); save its state_dict as safetensors"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever the byte that is wrong leads to
        raise WeightsError(
            f"{path} is not a readable checkpoint, damaged or cut short: {_first_line(error)}"
        ) from error
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of named tensors as float32, the same for every file format and storage precision."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _assets() -> Path:
    return Path(str(resources.files("mimexport"))) / "assets"


def _read_embedded(name: str, file: str) -> dict[str, Any]:
    path = embedded_file(name)
    if path is None:
        raise WeightsError(
            f"the weights of '{name}' are in the source repository and not in the wheel: take the file"
            f" export/mimexport/assets/{file} from there and give it as --weights FILE"
        )
    return read_checkpoint(path)


def _timm_entry(name: str) -> Alias:
    """Describe a timm name that is no alias."""
    try:
        cfg = get_pretrained_cfg(name) if is_model(name) else None
    except RuntimeError:  # the architecture exists, the tag does not
        cfg = None
    if cfg is None:
        known = [model for family in FAMILIES for model in list_models(module=family, pretrained=True)]
        raise UnknownNameError("model", name, [*ALIASES, *known])
    return Alias(name, int(cfg.input_size[-1]), 0, 0, 0, str(cfg.license or "unknown"))


def _create(alias: Alias, kwargs: dict[str, Any], *, pretrained: bool = False) -> nn.Module:
    if is_model_in_modules(alias.timm_name, ("vision_transformer", "eva")):
        # Some models would otherwise resize their position table in the graph, for whatever size comes.
        kwargs = kwargs | {"dynamic_img_size": False}
    model: nn.Module = timm.create_model(alias.timm_name, pretrained=pretrained, num_classes=0, **kwargs)
    size = kwargs.get("img_size")
    if size and size % (unit := _unit(model)):
        raise OptionError(f"--image-size {size}: {alias.timm_name} takes multiples of {unit} px")
    return model


def _unit(model: nn.Module) -> int:
    """Return what the edge of the input must be a multiple of, px."""
    if isinstance(model, Hiera):
        return int(model.patch_stride[0] * model.mask_unit_size[0])
    patch_embed: Any = model.patch_embed
    return int(patch_embed.patch_size[0])


def _fetch(alias: Alias, kwargs: dict[str, Any], name: str) -> nn.Module:
    ways = "give --weights FILE, or --random-weights for a test"
    cfg = get_pretrained_cfg(alias.timm_name)
    if alias.kwargs or not (cfg.hf_hub_id or cfg.url):
        raise WeightsError(f"no hub holds weights for '{name}'; {ways}")
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)  # its retries are not the user's concern, the error below is
    try:
        return _create(alias, kwargs, pretrained=True)
    except OptionError:  # a size that the patches do not divide
        raise
    except Exception as error:  # the hub's clients raise from several libraries
        where = cfg.hf_hub_id or cfg.url
        raise WeightsError(
            f"the weights of '{name}' ({where}) could not be fetched ({type(error).__name__}); {ways}"
        ) from error
    finally:
        log.setLevel(level)


def _fit(model: nn.Module, checkpoint: dict[str, Any], where: str) -> None:
    """Load a checkpoint into `model`, keys mapped by timm's own filter; nothing may be missing or left over."""
    own = model.state_dict().keys()
    state = _strip(checkpoint, own)
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        mapped = filter_fn(state, model) if filter_fn else state
        mapped = {key: value for key, value in mapped.items() if _belongs(key, own)}
        outcome = model.load_state_dict(mapped, strict=False)
    except (RuntimeError, AttributeError, KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"{where} does not fit the architecture: {_first_line(error)}") from error
    problems = [f"{kind} {_some(keys)}" for kind, keys in zip(("missing", "unexpected"), outcome, strict=True) if keys]
    if problems:
        raise WeightsError(f"{where} does not fit the architecture: {'; '.join(problems)}")
    bad = [key for key, value in model.state_dict().items() if not bool(value.isfinite().all())]
    if bad:
        raise WeightsError(f"{where} holds NaN or infinity in {_some(bad)}")


def _belongs(key: str, own: Set[str]) -> bool:
    """Tell whether a tensor is the encoder's: Hiera's last norm is called a head, SigLIP's pool is part of it."""
    return key in own or not key.startswith(_NOT_BACKBONE)


def _strip(checkpoint: dict[str, Any], own: Set[str]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, out of the containers and key prefixes of training code."""
    state: dict[str, Any] = checkpoint
    while (inner := next((state[key] for key in _CONTAINERS if isinstance(state.get(key), dict)), None)) is not None:
        state = inner
    if isinstance(state.get("encoder"), dict):  # I-JEPA
        state = state["encoder"]
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if any(key.startswith(f"{prefix}patch_embed.") for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    # Here and not after the filter: timm takes any checkpoint with a mask token for DINOv2's.
    return {key: value for key, value in tensors.items() if _belongs(key, own)}


def _shake_constants(model: nn.Module) -> None:
    """Move parameters that an initialisation leaves constant (norms, biases, layer scale) to random values.

    A network whose biases are zero and whose layer scale is 1e-5 hides a graph that lost them.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.std() == 0:
                centre = 1.0 if parameter.flatten()[0] != 0 else 0.0
                parameter.normal_(centre, 0.1)


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:5])
    return f"{len(keys)} keys: {shown}" + (" …" if len(keys) > 5 else "")


def _first_line(error: BaseException) -> str:
    text = "" if isinstance(error, KeyError) else str(error)  # a missing key alone says nothing
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__
