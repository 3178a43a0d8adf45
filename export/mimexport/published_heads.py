"""Read heads published by others: AbMILP checkpoints of beyond_cls, and EP heads of efficient-probing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from mimexport.backbone import Shape
from mimexport.checkpoints import read_checkpoint
from mimexport.errors import HeadError, WeightsError
from mimexport.heads import Head
from mimruntime.manifest import TokenNorm

_EP_REPOSITORY = "billpsomas/efficient-probing-heads"


def load_published_head(path: Path, shape: Shape, token_norm: TokenNorm | None) -> Head:
    """Read a `.pth` head without running any code in it.

    Args:
        path: the checkpoint.
        shape: shape of the backbone's tokens.
        token_norm: value of `--token-norm`; required for EP files, which do not record the token norm.

    Raises:
        HeadError: the file is of neither kind, or has a form that is not supported.
    """
    try:
        content = read_checkpoint(path)
    except WeightsError as error:
        raise HeadError(str(error)) from error
    meta = content.get("meta") if isinstance(content.get("meta"), dict) else _config_beside(path)
    state: Any = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    tensors = {_short(name): value.float() for name, value in state.items() if isinstance(value, Tensor)}
    if "0.attention_predictor.0.weight" in tensors:
        return _abmilp(tensors, shape, path)
    if "0.cls_token" in tensors and "0.v.weight" in tensors:
        return _ep(tensors, meta or {}, shape, path, token_norm)
    known = "0.attention_predictor.* (beyond_cls) or 0.cls_token with 0.v.weight (efficient probing)"
    raise HeadError(f"{path} holds {', '.join(sorted(tensors)[:4]) or 'no tensors'}; expected the keys {known}")


def fetch_ep_head(slug: str) -> Path:
    """Download the published EP head `slug` (such as mae_base) and its config.json; return the head's path.

    Raises:
        HeadError: the hub cannot be reached or has no such head.
    """
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - slow, and only needed here

    try:
        hf_hub_download(_EP_REPOSITORY, f"{slug}/config.json")
        return Path(hf_hub_download(_EP_REPOSITORY, f"{slug}/ep_head.pth"))
    except Exception as error:  # the hub's clients raise from several libraries
        raise HeadError(
            f"the head '{slug}' of {_EP_REPOSITORY} could not be downloaded ({type(error).__name__}); give --head FILE"
        ) from error


def _short(name: str) -> str:
    """Return a tensor's key without the prefixes `module.` and `head.` of whole-model checkpoints."""
    return name.removeprefix("module.").removeprefix("head.")


def _config_beside(path: Path) -> dict[str, Any] | None:
    config = path.with_name("config.json")
    if not config.is_file():
        return None
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HeadError(f"{config} is not readable JSON: {error}") from error
    return content if isinstance(content, dict) else None


def _abmilp(tensors: dict[str, Tensor], shape: Shape, path: Path) -> Head:
    """Convert a beyond_cls head: `0.attention_predictor.{0,2,4…}` are its layers; `0.pos_embed` is unused there."""
    layers = sorted({int(name.split(".")[2]) for name in tensors if name.startswith("0.attention_predictor.")})
    if layers != list(range(0, 2 * len(layers), 2)):
        raise HeadError(f"{path} has layers {layers} in 0.attention_predictor, expected 0, 2, 4 …")
    parts = {
        f"scorer.{layer}.{kind}": tensors[f"0.attention_predictor.{layer}.{kind}"]
        for layer in layers
        for kind in ("weight", "bias")
    }
    return Head(
        agg="abmilp",
        # The file does not record the activation between layers (tanh or ReLU); the default of beyond_cls is tanh.
        params={"depth": len(layers), "activation": "tanh", "prior": "none"},
        token_norm="raw",
        dim=int(parts["scorer.0.weight"].shape[1]),
        grid=shape.grid,
        model="not recorded",
        backbone_sha256=None,
        tensors=parts,
        recipe={"from": path.name, "code": "beyond_cls"},
    )


def _ep(
    tensors: dict[str, Tensor], meta: dict[str, Any], shape: Shape, path: Path, token_norm: TokenNorm | None
) -> Head:
    if meta.get("cls_features", "ep") != "ep":
        raise HeadError(
            f"{path} also pools [cls] (cls_features = {meta['cls_features']}); only heads that pool patch tokens (ep) are"
            " supported"
        )
    if token_norm is None:
        raise HeadError(f"{path} does not record whether its tokens were raw or final; give --token-norm")
    queries, value = tensors["0.cls_token"][0], tensors["0.v.weight"]
    if "0.v.bias" in tensors:
        raise HeadError(f"{path} has a bias in its value projection, which is not supported; use a head without it")
    return Head(
        agg="ep",
        params={"queries": int(queries.shape[0]), "d_out": int(queries.shape[1] // value.shape[0])},
        token_norm=token_norm,
        dim=int(queries.shape[1]),
        grid=shape.grid,
        model=str(meta.get("model", "not recorded")),
        backbone_sha256=None,
        tensors={"queries": queries, "value.weight": value},
        recipe={"from": path.name, "code": "efficient-probing"},
        figures={key: meta[key] for key in ("val_acc1_at_head_epoch", "table_best_acc1") if key in meta},
    )
