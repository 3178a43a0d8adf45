"""The flow from a name to an artifact: load, compose, export, compare, seal."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import importlib.metadata
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from mimexport import graph as graph_file
from mimexport.aggregators import AGGREGATORS, Aggregator, make_aggregator
from mimexport.backbone import Backbone
from mimexport.card import write_card
from mimexport.model import EmbeddingModel
from mimexport.scenes import draw_scenes
from mimexport.weights import LoadedModel, load_model
from mimruntime import manifest as m
from mimruntime import parity
from mimruntime.artifact import REFERENCE, Artifact, seal, staged_folder
from mimruntime.engines import open_engine
from mimruntime.errors import OptionError, UnknownNameError

REFERENCE_IMAGES = 8
_TOOLS = ("mimexport", "torch", "timm", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What to build, and where.

    Attributes:
        model: alias or timm name.
        agg: name in `AGGREGATORS`.
        out: the artifact folder; an artifact that is there is replaced.
        agg_options: of the aggregator, by name; None stands for 'not given'.
        token_norm: None takes the aggregator's default.
        weights: a checkpoint file.
        random_seed: draw random weights from this seed.
        size: edge of the square input, px; None takes the model's own.
        precision: of the backbone.
        with_selection: add the graph output `selection`.

    """

    model: str
    agg: str
    out: Path
    agg_options: Mapping[str, Any] = field(default_factory=dict)
    token_norm: m.TokenNorm | None = None
    weights: Path | None = None
    random_seed: int | None = None
    size: int | None = None
    precision: m.Precision = "fp32"
    with_selection: bool = False


def build(options: BuildOptions, report: Callable[[str], None] = lambda _: None) -> Artifact:
    """Build the artifact that `options` describe; whatever fails, no half of it is left.

    Args:
        options: what and where.
        report: called with one line at the start of every step.

    Raises:
        MimError: any of its kinds, each with one line for the user.

    """
    if options.agg not in AGGREGATORS:
        raise UnknownNameError("aggregator", options.agg, AGGREGATORS)
    with staged_folder(options.out) as stage:
        report(f"loading {options.model}")
        loaded = load_model(options.model, weights=options.weights, random_seed=options.random_seed, size=options.size)
        preprocess = preprocess_of(loaded.config)
        model = compose(loaded, options)
        images = draw_scenes(REFERENCE_IMAGES, preprocess.size)
        reference = embed_with_torch(model, images)
        np.savez_compressed(stage / REFERENCE, images=images, embedding=reference)
        report(f"exporting the graph ({options.precision}, opset {graph_file.OPSET})")
        model.set_precision(options.precision)
        inputs, outputs = graph_file.export_graph(model, stage, preprocess.size)
        backbone = _backbone_record(loaded, model.backbone, preprocess.size)
        aggregator = _aggregator_record(options.agg, model.aggregator, token_norm_of(options, model.aggregator))
        reduced = model.backbone.reduced and not model.aggregator.reads_all
        del model, loaded
        gc.collect()  # large backbones do not fit beside a second copy in the engine
        report("comparing the graph in ONNX Runtime with torch")
        with open_engine("onnxruntime", stage / graph_file.FILE) as engine:
            figures = parity.measure(
                lambda pixels: engine.run(pixels)["embedding"], images, reference, engine=engine.name
            )
        parity.check(figures, options.precision)
        embedding = m.Embedding(dim=reference.shape[1])
        manifest = m.Manifest(
            name=options.out.absolute().name,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            embedding_space=m.embedding_space(backbone, aggregator, embedding, preprocess),
            backbone=backbone,
            aggregator=aggregator,
            embedding=embedding,
            preprocess=preprocess,
            graph=m.Graph(
                file=graph_file.FILE,
                opset=graph_file.OPSET,
                precision=options.precision,
                last_block="reduced" if reduced else "full",
                inputs=inputs,
                outputs=outputs,
            ),
            parity=figures,
            versions={tool: importlib.metadata.version(tool) for tool in _TOOLS if _is_installed(tool)},
            files={},
        )
        write_preprocessor(stage, preprocess)
        write_card(stage, manifest)
        seal(stage, manifest)
    return Artifact.open(options.out)


def compose(loaded: LoadedModel, options: BuildOptions) -> EmbeddingModel:
    """Return the network of `options`, in float32 and evaluation mode.

    Raises:
        OptionError: an option that does not fit the backbone.

    """
    backbone = Backbone(loaded.model)
    aggregator = make_aggregator(options.agg, backbone.shape, dict(options.agg_options))
    if options.with_selection and not aggregator.has_weights:
        having = ", ".join(name for name, kind in AGGREGATORS.items() if kind.has_weights)
        raise OptionError(f"--with-selection: aggregator {options.agg} gives patches no share; these do: {having}")
    config = loaded.config
    return EmbeddingModel(
        backbone,
        aggregator,
        token_norm_of(options, aggregator),
        config["mean"],
        config["std"],
        with_selection=options.with_selection,
    ).eval()


def token_norm_of(options: BuildOptions, aggregator: Aggregator) -> m.TokenNorm:
    """Return the token norm asked for, or the aggregator's default."""
    return options.token_norm or aggregator.token_norm


def embed_with_torch(model: EmbeddingModel, images: np.ndarray) -> np.ndarray:
    """Return the embeddings (n, D) float32 of uint8 images (n, H, W, 3), two at a time to keep memory low."""
    with torch.inference_mode():
        parts = [model(torch.from_numpy(images[i : i + 2]))[0].numpy() for i in range(0, len(images), 2)]
    return np.concatenate(parts)


def preprocess_of(config: Mapping[str, Any]) -> m.Preprocess:
    """Translate timm's data configuration.

    Raises:
        OptionError: a transform this project does not have.

    """
    _, height, width = config["input_size"]
    modes: dict[str, Any] = {"center": "shortest", "squash": "squash"}
    if height != width or config["crop_mode"] not in modes:
        raise OptionError(
            f"this backbone wants {width}×{height} px, crop mode '{config['crop_mode']}';"
            " square inputs with 'center' or 'squash' are supported"
        )
    return m.Preprocess(
        size=height,
        resize=math.floor(height / config["crop_pct"]),
        mode=modes[config["crop_mode"]],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def write_preprocessor(folder: Path, preprocess: m.Preprocess) -> None:
    """Write `preprocessor_config.json`: resize and crop as Hugging Face's tools read it; the graph does the rest."""
    edge = preprocess.resize
    config = {
        "do_resize": True,
        "size": {"shortest_edge": edge} if preprocess.mode == "shortest" else {"height": edge, "width": edge},
        "resample": {"lanczos": 1, "bilinear": 2, "bicubic": 3}[preprocess.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": preprocess.size, "width": preprocess.size},
        "do_rescale": False,
        "do_normalize": False,
        "image_mean": preprocess.mean,
        "image_std": preprocess.std,
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
    )


def _backbone_record(loaded: LoadedModel, backbone: Backbone, size: int) -> m.Backbone:
    return m.Backbone(
        model=loaded.name,
        timm_name=loaded.timm_name,
        source=loaded.source,
        origin=loaded.origin,
        weights_sha256=loaded.sha256,
        license=loaded.license,
        patch=size // backbone.shape.grid[0],
        grid=backbone.shape.grid,
        prefix_tokens=backbone.shape.prefix,
        dim=backbone.shape.dim,
    )


def _aggregator_record(name: str, aggregator: Aggregator, token_norm: m.TokenNorm) -> m.Aggregator:
    return m.Aggregator(name=name, params=aggregator.params, token_norm=token_norm)


def _is_installed(tool: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(tool))
    return False
