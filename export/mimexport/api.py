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
"""Where tokens of training images are kept."""
_Path = str | os.PathLike[str]


def build(
    model: str | nn.Module | LoadedModel,
    agg: str | Aggregator = "topk",
    out: _Path | None = None,
    *,
    agg_options: Mapping[str, Any] | None = None,
    token_norm: TokenNorm | None = None,
    weights: _Path | None = None,
    random_seed: int | None = None,
    size: int | None = None,
    pixels: PixelConfig | None = None,
    license: str | None = None,  # noqa: A002 - as the manifest calls it
    precision: Precision = "fp32",
    with_selection: bool = False,
    head: Head | _Path | None = None,
    whiten: int | bool | None = None,
    calibrate: _Path | None = None,
    force: bool = False,
    keep: str | None = None,
    keep_by: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Build an artifact: backbone and aggregator as one ONNX graph, compared with torch.

    >>> import mimexport
    >>> artifact = mimexport.build("mae-tiny", agg="topk", out="artifacts/tiny")
    >>> artifact.manifest.embedding.dim, artifact.manifest.graph.precision
    (192, 'fp32')

    Args:
        model: an alias (`mimexport models`) or timm name; a timm model in memory with its weights, which is copied; or what
            a loader of your own gives, a `LoadedModel`.
        agg: a name (`mimexport aggregators`), or an instance of your own subclass of `Aggregator`.
        out: the artifact's folder; None is `artifacts/MODEL-AGG`.
        agg_options: options of a named aggregator, for example `{"k": "50%", "score": "input-norm"}`.
        token_norm: read tokens "raw" or after the "final" norm; None takes the default.
        weights: a checkpoint (`.safetensors`, `.pth`) instead of the hub, for a named model.
        random_seed: draw random weights from this seed, for tests.
        size: edge of the square input, px; None is the model's own.
        pixels: mean, std, crop and interpolation, where timm does not know them.
        license: of the weights; None is what is known, "not stated" for your own.
        precision: of the backbone's products: "fp32", "fp16", "bf16" or "int8".
        with_selection: also output the share of every patch, float32 (B, rows, columns).
        head: what was learned: a `Head`, a file, or the name of an embedded head.
        whiten: apply the head's whitening and keep so many dimensions, 0 or True for all; False gives plain vectors. None
            whitens where this package ships a whitening for the backbone and aggregator, but for [cls].
        calibrate: folder of real images; int8 needs it, and the loss of narrower precisions is measured on it.
        force: replace an artifact that is there.
        keep: how many patches stay in the encoder: a share "50%", a count "49", or several with the block before which they
            apply, "75%@0,50%@6". None keeps all.
        keep_by: the rule that chooses them: "center-checkerboard" (default), "center", "checkerboard", "norm", "center-norm" or
            "contrast".
        report: called with one line at the start of every step.

    Returns:
        The artifact, opened; give it to `mimruntime.Embedder.open`.

    Raises:
        MimError: the names, options, weights or head do not fit, the folder cannot be written, or the graph's vectors are
            not torch's. Nothing half-written stays.

    """
    options = BuildOptions(
        model=model,
        agg=agg,
        out=Path(),
        agg_options=agg_options or {},
        token_norm=token_norm,
        weights=None if weights is None else Path(weights),
        random_seed=random_seed,
        size=size,
        pixels=pixels or PixelConfig(),
        license=license,
        precision=precision,
        with_selection=with_selection,
        head=head if isinstance(head, Head) or head is None else os.fspath(head),
        whiten=None if whiten is None or whiten is False else int(whiten is not True and whiten),
        whiten_by_default=whiten is None,
        calibrate=None if calibrate is None else Path(calibrate),
        force=force,
        keep=keep,
        keep_by=keep_by,
    )
    default = Path("artifacts") / f"{options.model_name}-{options.agg_name}"
    return pipeline.build(replace(options, out=default if out is None else Path(out)), report)


def fit(
    model: str | nn.Module | LoadedModel,
    agg: str,
    data: _Path,
    *,
    labels: bool = True,
    out: _Path | None = None,
    agg_options: Mapping[str, Any] | None = None,
    token_norm: TokenNorm | None = None,
    weights: _Path | None = None,
    random_seed: int | None = None,
    seed: int = 0,
    cache: _Path = CACHE,
    keep: str | None = None,
    keep_by: str | None = None,
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Head:
    """Learn a head on frozen tokens, with labels or without, and its whitening.

    >>> import mimexport
    >>> head = mimexport.fit("mae-tiny", "mean", data="photos/", labels=False)
    >>> head.agg, head.whitening[1].shape
    ('mean', torch.Size([192, 192]))

    Args:
        model: as in `build`.
        agg: the aggregator to learn; one that learns nothing gets a whitening.
        data: folder or zip: CLASS/image, or train/CLASS/image and val/CLASS/image; without classes for `labels=False`.
        labels: learn with the labels of class folders.
        out: also write the head to this `.safetensors` file.
        agg_options: as in `build`.
        token_norm: likewise.
        weights: likewise.
        random_seed: likewise.
        seed: of everything random; the same seed gives the same head.
        cache: folder for the tokens, about 2·N·D bytes an image and view for N patches D wide.
        keep: as in `build`; the head then fits artifacts that keep the same patches, and no others.
        keep_by: likewise.
        report: called with one line at the start of every step.
        progress: called with a name, images done and images in all.

    Returns:
        The head; give it to `build`.

    Raises:
        MimError: the names, options or weights do not fit, or there are too few images.

    """
    if out is not None:
        check_out(Path(out))
    head = open_fitter(
        model, agg, data, labels=labels, agg_options=agg_options, token_norm=token_norm, weights=weights,
        random_seed=random_seed, seed=seed, cache=cache, keep=keep, keep_by=keep_by, report=report, progress=progress,
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
    report: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> fitter.Fitter:
    """Return what `fit` runs, everything checked that can be before the work; see `fit`."""
    train, _ = open_images(Path(data), seed=seed)
    if train.labels is None and labels:
        raise OptionError(f"{data} has no two class folders; learn without labels: --unlabelled, or labels=False")
    options = fitter.FitOptions(
        model=model,
        agg=agg,
        images=train.images,
        labels=train.labels if labels else None,
        digest=train.digest,
        cache=Path(cache).expanduser(),
        agg_options=agg_options or {},
        token_norm=token_norm,
        weights=None if weights is None else Path(weights),
        random_seed=random_seed,
        seed=seed,
        keep=keep,
        keep_by=keep_by,
    )
    return fitter.Fitter(options, report, progress)


def check_out(path: Path) -> None:
    """Refuse, before the work, a place that will not take a head.

    Raises:
        OptionError: the name of a head ends otherwise.
        OutputError: the file cannot be written.

    """
    if path.suffix != ".safetensors":
        raise OptionError(f"{path}: the name of a head ends in .safetensors")
    check_writable(path)
