"""The Python API: the functions behind the commands `mimexport build` and `mimexport fit`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mimexport import pipeline
from mimexport.aggregators import Aggregator
from mimexport.fitting import fitter
from mimexport.fitting.training_images import open_images
from mimexport.heads import Head, save_head
from mimexport.loaded_model import LoadedModel
from mimexport.loading import PixelConfig
from mimexport.options import BuildOptions
from mimruntime.artifact import Artifact
from mimruntime.errors import OptionError
from mimruntime.manifest import Precision, TokenNorm
from mimruntime.outputs import check_writable

CACHE = Path("~/.cache/mimexport")
"""Default folder of the stored tokens of training images."""
_Path = str | os.PathLike[str]


def build(
    model: str | nn.Module | LoadedModel, agg: str | Aggregator = "topk", out: _Path | None = None, *,
    agg_options: Mapping[str, Any] | None = None, token_norm: TokenNorm | None = None,
    weights: _Path | None = None, random_seed: int | None = None,
    size: int | None = None, pixels: PixelConfig | None = None,
    license: str | None = None,  # noqa: A002 - as the manifest calls it
    precision: Precision = "fp32", calibrate: _Path | None = None,
    with_selection: bool = False, head: Head | _Path | None = None, whiten: int | bool | None = None,
    keep: str | None = None, keep_by: str | None = None,
    force: bool = False, report: Callable[[str], None] = lambda _: None,
) -> Artifact:  # fmt: skip
    """Build an artifact: backbone and aggregator as one ONNX graph, compared with torch.

    >>> import mimexport
    >>> artifact = mimexport.build("mae-tiny", agg="topk", out="artifacts/tiny")
    >>> artifact.manifest.embedding.dim, artifact.manifest.graph.precision
    (192, 'fp32')

    Args:
        model: an alias (`mimexport models`) or timm name; a timm model in memory with its weights, which is copied; or a
            `LoadedModel` from your own loader.
        agg: a name (`mimexport aggregators`), or an instance of your own subclass of `Aggregator`.
        out: the artifact folder; None means `artifacts/MODEL-AGG`.
        agg_options: options of a named aggregator, for example `{"k": "50%", "score": "input-norm"}`.
        token_norm: read tokens "raw" or after the "final" norm; None takes the default for model and aggregator.
        weights: a checkpoint (`.safetensors`, `.pth`) instead of the hub, for a named model.
        random_seed: draw random weights from this seed, for tests.
        size: edge of the square input, px; None takes the model's own.
        pixels: mean, std, crop and interpolation, if timm's are missing or wrong.
        license: licence of the weights; None takes the published one, "not stated" for your own weights.
        precision: precision of the backbone: "fp32", "fp16", "bf16" or "int8".
        calibrate: folder of real images; required for int8. The loss of precisions below fp32 is measured on them.
        with_selection: also output the weight of each patch, float32 (B, rows, columns).
        head: a `Head`, a head file, or the name of an embedded head.
        whiten: apply the head's whitening and keep this many dimensions, 0 or True for all; False applies none. None applies
            this package's whitening for the backbone and aggregator if there is one, except for [cls].
        keep: how many patches stay in the encoder: a share "50%", a count "49", or a schedule "75%@0,50%@6", which drops
            patches before block 0 and before block 6. None keeps all.
        keep_by: "center-checkerboard" (default), "center", "checkerboard", "norm", "center-norm", "contrast", "similarity".
        force: replace an existing artifact.
        report: called with one line at the start of each step.

    Returns:
        The opened artifact; pass it to `mimruntime.Embedder.open`.

    Raises:
        MimError: the names, options, weights or head do not fit, the folder cannot be written, or the graph's vectors
            differ from torch's. No partial artifact is left.

    """
    options = BuildOptions(
        model=model, agg=agg, out=Path(), agg_options=agg_options or {}, token_norm=token_norm,
        weights=_path(weights), random_seed=random_seed, size=size, pixels=pixels or PixelConfig(), license=license,
        precision=precision, calibrate=_path(calibrate), with_selection=with_selection,
        head=head if isinstance(head, Head) or head is None else os.fspath(head),
        whiten=None if whiten is None or whiten is False else int(whiten is not True and whiten),
        whiten_by_default=whiten is None, keep=keep, keep_by=keep_by, force=force,
    )  # fmt: skip
    default = Path("artifacts") / f"{options.model_name}-{options.agg_name}"
    return pipeline.build(replace(options, out=default if out is None else Path(out)), report)


def fit(
    model: str | nn.Module | LoadedModel, agg: str, data: _Path, *,
    labels: bool = True, out: _Path | None = None,
    agg_options: Mapping[str, Any] | None = None, token_norm: TokenNorm | None = None,
    weights: _Path | None = None, random_seed: int | None = None, seed: int = 0, cache: _Path = CACHE,
    keep: str | None = None, keep_by: str | None = None, device: str = "auto",
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Head:  # fmt: skip
    """Learn a head and its whitening on frozen tokens, with or without labels.

    >>> import mimexport
    >>> head = mimexport.fit("mae-tiny", "mean", data="photos/", labels=False)
    >>> head.agg, head.whitening[1].shape
    ('mean', torch.Size([192, 192]))

    Args:
        model: as in `build`.
        agg: the aggregator to learn; if it learns nothing, only the whitening is fitted.
        data: folder or zip of CLASS/image, or of train/CLASS/image and val/CLASS/image; `labels=False` needs no classes.
        labels: learn with the labels of class folders; topk and whitenings never use them.
        out: also write the head to this `.safetensors` file.
        agg_options: as in `build`.
        token_norm: as in `build`.
        weights: as in `build`.
        random_seed: as in `build`.
        seed: seed of all random choices of the training; the same seed gives the same head on the same device.
        cache: folder of stored tokens, about 2·N·D bytes per image and view for N patches of width D.
        keep: as in `build`; the head fits only artifacts that keep the same patches.
        keep_by: as in `build`.
        device: where torch computes: "cpu", "cuda", or "auto", the GPU if torch sees one. Always float32, never TF32.
        report: called with one line at the start of each step.
        progress: called with a name, the number of images done and the total.

    Returns:
        The head; pass it to `build`.

    Raises:
        MimError: the names, options or weights do not fit, or there are too few images.

    """
    if out is not None:
        check_out(Path(out))
    head = open_fitter(
        model, agg, data, labels=labels, agg_options=agg_options, token_norm=token_norm, weights=weights,
        random_seed=random_seed, seed=seed, cache=cache, keep=keep, keep_by=keep_by, device=device, report=report,
        progress=progress,
    ).fit()  # fmt: skip
    if out is not None:
        save_head(head, Path(out))
    return head


def open_fitter(
    model: str | nn.Module | LoadedModel,
    agg: str,
    data: _Path,
    *,
    labels: bool,
    agg_options: Mapping[str, Any] | None,
    token_norm: TokenNorm | None,
    weights: _Path | None,
    random_seed: int | None,
    seed: int,
    cache: _Path,
    keep: str | None,
    keep_by: str | None,
    device: str,
    report: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> fitter.Fitter:
    """Return the `Fitter` that `fit` runs, after checking all options; see `fit` for the arguments."""
    train, _ = open_images(Path(data))
    if train.labels is None and labels:
        raise OptionError(
            f"{data} has fewer than two class folders; learn without labels: --unlabelled, or labels=False"
        )
    options = fitter.FitOptions(
        model=model,
        agg=agg,
        images=train.images,
        labels=train.labels if labels else None,
        digest=train.digest,
        cache=Path(cache).expanduser(),
        agg_options=agg_options or {},
        token_norm=token_norm,
        weights=_path(weights),
        random_seed=random_seed,
        seed=seed,
        keep=keep,
        keep_by=keep_by,
        device=device,
    )
    return fitter.Fitter(options, report, progress)


def _path(given: _Path | None) -> Path | None:
    return None if given is None else Path(given)


def check_out(path: Path) -> None:
    """Raise an error if a head cannot be written to `path`; call before any computing.

    Raises:
        OptionError: the name does not end in .safetensors.
        OutputError: the file cannot be written.

    """
    if path.suffix != ".safetensors":
        raise OptionError(f"{path}: the name of a head file must end in .safetensors")
    check_writable(path)
