"""Create a backbone by name and load its weights: from the package, the hub, a file or a seed."""

from __future__ import annotations

import logging
from importlib import resources
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from timm.models import get_pretrained_cfg, is_model, is_model_in_modules, list_models
from torch import nn

from mimexport.aliases import ALIASES, Alias
from mimexport.checkpoints import has_pool_norm, load_into, read_checkpoint
from mimexport.errors import WeightsError
from mimexport.families import family_of
from mimexport.loaded_model import NOT_STATED, LoadedModel, tensors_sha256
from mimruntime.errors import OptionError, UnknownNameError
from mimruntime.manifest import Source

TIMM_MODULES = ("vision_transformer", "eva", "beit", "hiera")
"""timm modules whose models can be a backbone."""
_HUB_PATIENCE_S = 5.0
_DEMONSTRATION = "trained on 100,000 images of 64 px"


def load_model(
    name: str, *, weights: Path | None = None, random_seed: int | None = None, size: int | None = None
) -> LoadedModel:
    """Create the backbone `name` and load its weights.

    Args:
        name: an alias or a timm name.
        weights: a `.safetensors` file, or a `.pth` / `.pt` / `.tar` / `.bin` file, read with weights-only loading.
        random_seed: draw random weights from this seed instead.
        size: edge of the square input, px; position tables are resampled to it.

    Raises:
        UnknownNameError: no such backbone.
        WeightsError: the weights cannot be downloaded or read, or do not fit the architecture.
        OptionError: the size is not a multiple of the patch size.

    """
    alias = ALIASES.get(name) or _timm_entry(name)
    kwargs = dict(alias.kwargs) | ({"img_size": size} if size else {})
    source: Source
    notes: list[str] = []
    if random_seed is not None:
        torch.manual_seed(random_seed)
        model = _create(alias, kwargs)
        _shake_constants(model)
        source, origin = "random", f"seed {random_seed}"
    elif weights is not None:
        model, notes = _create_from(weights, alias, kwargs)
        source, origin = "file", weights.name
    elif alias.embedded:
        model = _create(alias, kwargs)
        notes += load_into(model, _read_embedded(name, alias.embedded), alias.embedded)
        notes.append(f"{name} is a demonstration, {_DEMONSTRATION}; for real use, build a larger backbone")
        source, origin = "embedded", alias.embedded
    else:
        cfg = get_pretrained_cfg(alias.timm_name)
        model = _fetch(alias, kwargs, name)
        source, origin = "hub", str(cfg.hf_hub_id or cfg.url)
    model = model.eval()
    config = timm.data.resolve_model_data_config(model)
    if "img_size" in kwargs:
        config["input_size"] = (3, kwargs["img_size"], kwargs["img_size"])
    config |= alias.config
    digest = tensors_sha256(model.state_dict())
    if source == "embedded" and not size and digest != alias.sha256:
        raise WeightsError(
            f"{origin} in this package has the wrong digest for '{name}' ({digest[:12]}…); reinstall mimexport"
        )
    unknown = source == "file" and digest != alias.sha256
    return LoadedModel(
        model=model,
        name=name,
        timm_name=alias.timm_name,
        source=source,
        origin=origin,
        sha256=digest,
        license="none (random weights)" if source == "random" else NOT_STATED if unknown else alias.license,
        config=config,
        notes=tuple(notes),
    )


def _create_from(weights: Path, alias: Alias, kwargs: dict[str, Any]) -> tuple[nn.Module, list[str]]:
    """Return a model of the checkpoint's architecture with its weights, and notes for the user."""
    checkpoint = read_checkpoint(weights)
    notes: list[str] = []
    if has_pool_norm(checkpoint) and is_model_in_modules(alias.timm_name, ("vision_transformer",)):
        kwargs = kwargs | {"global_pool": "avg"}
        notes.append(
            "the checkpoint has its norm after the average pool (fc_norm): with token norm 'final' the pooled vector"
            " is normalised"
        )
    model = _create(alias, kwargs)
    return model, [*notes, *load_into(model, checkpoint, str(weights))]


def embedded_file(name: str) -> Path | None:
    """Return the file of the backbone's embedded weights; None if this installation has none."""
    alias = ALIASES.get(name)
    path = None if alias is None or alias.embedded is None else _assets() / alias.embedded
    return path if path is not None and path.is_file() else None


def _assets() -> Path:
    return Path(str(resources.files("mimexport"))) / "assets"


def _read_embedded(name: str, file: str) -> dict[str, Any]:
    path = embedded_file(name)
    if path is None:
        raise WeightsError(
            f"the weights of '{name}' are not in the wheel; download export/mimexport/assets/{file} from the source"
            " repository and give it with --weights FILE"
        )
    return read_checkpoint(path)


def _timm_entry(name: str) -> Alias:
    """Return the entry of a timm name that is not an alias."""
    try:
        cfg = get_pretrained_cfg(name) if is_model(name) else None
    except RuntimeError:  # the architecture exists, the tag does not
        cfg = None
    if cfg is None:
        known = [model for family in TIMM_MODULES for model in list_models(module=family, pretrained=True)]
        raise UnknownNameError("model", name, [*ALIASES, *known])
    return Alias(name, int(cfg.input_size[-1]), 0, 0, 0, str(cfg.license or "unknown"))


def _create(alias: Alias, kwargs: dict[str, Any], *, pretrained: bool = False) -> nn.Module:
    if is_model_in_modules(alias.timm_name, ("vision_transformer", "eva")):
        # Otherwise some models resize their position table in the graph at run time.
        kwargs = kwargs | {"dynamic_img_size": False}
    model: nn.Module = timm.create_model(alias.timm_name, pretrained=pretrained, num_classes=0, **kwargs)
    size = kwargs.get("img_size")
    if size and size % (unit := family_of(model).unit(model)):
        raise OptionError(f"--image-size {size}: {alias.timm_name} needs a multiple of {unit} px")
    return model


def _fetch(alias: Alias, kwargs: dict[str, Any], name: str) -> nn.Module:
    ways = "give --weights FILE, or --random-weights for a test"
    cfg = get_pretrained_cfg(alias.timm_name)
    if alias.kwargs or not (cfg.hf_hub_id or cfg.url):
        raise WeightsError(f"no hub has weights for '{name}'; {ways}")
    if cfg.hf_hub_id:
        _check_hub(str(cfg.hf_hub_id), name, ways)
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)  # hide its retries; the error below is enough
    try:
        return _create(alias, kwargs, pretrained=True)
    except OptionError:  # the size is not a multiple of the patch size
        raise
    except Exception as error:  # the hub's clients raise from several libraries
        where = cfg.hf_hub_id or cfg.url
        raise WeightsError(
            f"the weights of '{name}' ({where}) could not be downloaded ({type(error).__name__}); {ways}"
        ) from error
    finally:
        log.setLevel(level)


def _check_hub(hub_id: str, name: str, ways: str) -> None:
    """Raise WeightsError if the hub cannot be reached and the weights are not cached; retries take a minute to fail."""
    file = "model.safetensors"
    if isinstance(huggingface_hub.try_to_load_from_cache(hub_id, file), str):
        return
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(hub_id, file), timeout=_HUB_PATIENCE_S)
    except huggingface_hub.errors.HfHubHTTPError:  # the hub can be reached; the download reports its error
        return
    except Exception as error:  # transport errors have no common base class
        raise WeightsError(
            f"the weights of '{name}' ({hub_id}) could not be downloaded: the hub cannot be reached"
            f" ({type(error).__name__}); {ways}"
        ) from error


def _shake_constants(model: nn.Module) -> None:
    """Set parameters that are constant after initialisation (norms, biases, layer scale) to random values.

    With zero biases and a layer scale of 1e-5, a test would not notice a graph that lost them.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.std() == 0:
                centre = 1.0 if parameter.flatten()[0] != 0 else 0.0
                parameter.normal_(centre, 0.1)
