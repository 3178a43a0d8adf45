"""Head files: learned tensors of an aggregator and whitening, with recipe and figures, as safetensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
from torch import Tensor

from mimexport.aggregators import make_aggregator
from mimexport.aliases import ALIASES
from mimexport.backbone import Shape
from mimexport.errors import HeadError
from mimexport.loaded_model import LoadedModel, tensors_sha256
from mimruntime import records
from mimruntime.errors import OutputError
from mimruntime.manifest import Keep, Source, TokenNorm
from mimruntime.writing import write_file

_KEY = "mimexport-head"
_WHITEN_MEAN, _WHITEN_MATRIX = "whitening.mean", "whitening.matrix"
_SCHEMA = 2
"""2 added `keep`: on other patches than those that stayed, a head gives wrong vectors."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of the file's header."""

    schema: int = _SCHEMA
    agg: str
    params: dict[str, str | int | float | bool]
    token_norm: TokenNorm
    dim: int
    grid: tuple[int, int]
    model: str
    backbone_sha256: str | None
    recipe: dict[str, Any]
    figures: dict[str, Any]
    keep: Keep | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A fitted head.

    Attributes:
        agg: name of its aggregator.
        params: options of the aggregator.
        token_norm: norm of the tokens it was fitted on; it must be used with the same.
        dim: width of those tokens.
        grid: rows and columns of patches.
        model: name of the backbone it was fitted on.
        backbone_sha256: digest of that backbone's weights; None if unknown, as for published heads.
        tensors: state of the aggregator; empty if it learns nothing.
        whitening: mean (D',) and matrix (D', D'), columns by falling importance; None without whitening.
        recipe: how it was fitted.
        figures: measurements from the fit.
        keep: which patches stayed in the encoder during the fit; None if all did.
    """

    agg: str
    params: dict[str, str | int | float | bool]
    token_norm: TokenNorm
    dim: int
    grid: tuple[int, int]
    model: str
    backbone_sha256: str | None
    tensors: dict[str, Tensor]
    whitening: tuple[Tensor, Tensor] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    keep: Keep | None = None

    def sha256(self, *, whitened: bool) -> str:
        """Return the digest of the tensors that a graph uses, with or without the whitening."""
        used = dict(self.tensors)
        if whitened and self.whitening is not None:
            used[_WHITEN_MEAN], used[_WHITEN_MATRIX] = self.whitening
        return tensors_sha256(used)


def save_head(head: Head, path: Path) -> None:
    """Write `head` to `path` atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in head.tensors.items()}
    if head.whitening is not None:
        tensors[_WHITEN_MEAN], tensors[_WHITEN_MATRIX] = (part.contiguous() for part in head.whitening)
    record = _Record(**{name: getattr(head, name) for name in _Record.__struct_fields__ if name != "schema"})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    write_file(path, safetensors.torch.save(tensors, {_KEY: msgspec.json.encode(record).decode()}))


def load_head(path: Path) -> Head:
    """Read a head file of this project.

    Raises:
        HeadError: the file is missing, damaged, not from this project, or newer than this program.
    """
    if not path.is_file():
        raise HeadError(f"no head file at {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise HeadError(f"{path} is not a readable head: {error}") from error
    if header is None:
        raise HeadError(f"{path} is a safetensors file but not a head of this program; fit one with: mimexport fit")
    try:
        record = records.decode(header, _Record, format_name="", schema=_SCHEMA)
    except ValueError as error:
        raise HeadError(f"{path}: the head's header {error}") from error
    mean, matrix = tensors.pop(_WHITEN_MEAN, None), tensors.pop(_WHITEN_MATRIX, None)
    fields = {name: getattr(record, name) for name in _Record.__struct_fields__ if name != "schema"}
    return Head(tensors=tensors, whitening=None if mean is None or matrix is None else (mean, matrix), **fields)


def shipped_heads(model: str, source: Source, weights_sha256: str) -> dict[str, Path]:
    """Return this package's heads for `model` by name; none if its weights are not the embedded ones.

    Args:
        model: name of the backbone.
        source: where its weights came from.
        weights_sha256: digest of its weights, to recognise the embedded ones in a file.
    """
    alias = ALIASES.get(model)
    own = source == "embedded" or (alias is not None and alias.sha256 == weights_sha256)
    return embedded_heads(model) if own else {}


def embedded_heads(model: str) -> dict[str, Path]:
    """Return this package's heads for `model` by name."""
    folder = resources.files("mimexport") / "assets" / "heads" / model
    if not folder.is_dir():
        return {}
    return {Path(str(entry)).stem: Path(str(entry)) for entry in sorted(folder.iterdir(), key=lambda e: e.name)}


def check_fit(head: Head, loaded: LoadedModel, shape: Shape, token_norm: TokenNorm | None) -> None:
    """Raise HeadError if a head does not fit this backbone.

    Raises:
        HeadError: the weights, token width, grid or token norm differ from those of the fit.
    """
    if head.dim != shape.dim:
        raise HeadError(
            f"the head expects tokens of width {head.dim}, {loaded.name} has {shape.dim}; take another head"
        )
    same_model = head.model == loaded.name or head.backbone_sha256 == loaded.sha256
    if same_model and tuple(head.grid) != tuple(shape.grid):
        raise HeadError(
            f"the head was fitted on {_times(head.grid)} patches, but this input has {_times(shape.grid)}; heads work only"
            " at the model's own size: leave --image-size out"
        )
    if head.backbone_sha256 is not None and head.backbone_sha256 != loaded.sha256:
        raise HeadError(
            f"the head was fitted on {head.model} ({head.backbone_sha256[:12]}…), not on these weights of {loaded.name}"
            f" ({loaded.sha256[:12]}…); fit one: mimexport fit --model {loaded.name} --agg {head.agg}"
        )
    if token_norm is not None and token_norm != head.token_norm:
        raise HeadError(f"the head was fitted on {head.token_norm} tokens; leave --token-norm {token_norm} out")


def check_kept(head: Head, keep: Keep | None) -> None:
    """Refuse a head that was fitted on other patches than those that stay.

    Raises:
        HeadError: with what it was fitted on.
    """
    if head.keep == keep:
        return
    if head.keep is None:
        raise HeadError(
            "--keep: the head was fitted on all patches and does not fit those that are left; fit one with the same"
            " --keep, take an --agg that learns nothing, without --whiten, or leave --keep out"
        )
    raise HeadError(
        f"the head was fitted on {head.keep}; --keep asks for {keep or 'all patches'}; leave --keep out to take the head's"
    )


def _times(grid: tuple[int, int]) -> str:
    return "×".join(str(edge) for edge in grid)


def plain_head(agg: str, token_norm: TokenNorm, loaded: LoadedModel, shape: Shape, keep: Keep | None) -> Head:
    """Return a head without whitening for an aggregator that learns nothing, to compare with."""
    return Head(
        agg=agg, params=make_aggregator(agg, shape, {}).params, token_norm=token_norm, dim=shape.dim, grid=shape.grid,
        model=loaded.name, backbone_sha256=loaded.sha256, tensors={}, keep=keep,
    )  # fmt: skip
