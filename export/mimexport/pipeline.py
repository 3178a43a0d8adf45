"""The flow from a name to an artifact: load, compose, export, compare, seal."""

from __future__ import annotations

import datetime as dt
import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mimexport import graph as graph_file
from mimexport.aggregators import AGGREGATORS, Aggregator, make_aggregator
from mimexport.backbone import Backbone, Shape
from mimexport.card import write_card
from mimexport.conversion import Judge, check_narrow
from mimexport.errors import HeadError
from mimexport.foreign_heads import fetch_ep_head, load_foreign_head
from mimexport.heads import Head, check_fit, load_head, shipped_heads
from mimexport.model import EmbeddingModel, embed_with_torch
from mimexport.provenance import tool_versions
from mimexport.quantize import quantize_graph
from mimexport.weights import LoadedModel, load_model
from mimexport.whitening import Whitening
from mimruntime import manifest as m
from mimruntime import parity
from mimruntime.artifact import REFERENCE, Artifact, seal, staged_folder
from mimruntime.engines import engine_module, open_engine
from mimruntime.errors import OptionError, UnknownNameError
from mimruntime.scenes import draw_scenes

REFERENCE_IMAGES = 8
_JUDGE_ENGINES = {"bf16": "openvino"}
"""ONNX Runtime has no bf16 kernels on a CPU; OpenVINO runs such a graph on any, in fp32 where the CPU has no bf16."""
_IN_TORCH = ("fp16", "bf16")
"""Judged by torch, which rounds every product: on a CPU both engines widen fp16, and bf16 where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What to build, and where.

    Attributes:
        model: alias or timm name.
        agg: name in `AGGREGATORS`.
        out: the artifact folder.
        agg_options: of the aggregator, by name; None stands for 'not given'.
        token_norm: None takes the aggregator's default.
        weights: a checkpoint file.
        random_seed: draw random weights from this seed.
        size: edge of the square input, px; None takes the model's own.
        precision: of the backbone.
        with_selection: add the graph output `selection`.
        head: a head file, the name of an embedded head, or "hub:SLUG" for a published EP head.
        whiten: apply the head's whitening and keep so many dimensions, 0 for all; None leaves it out.
        calibrate: folder of real images that int8 is calibrated on and every narrower precision is judged by.
        force: replace an artifact that is there.

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
    head: str | None = None
    whiten: int | None = None
    calibrate: Path | None = None
    force: bool = False


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
    _check_calibrate(options)
    judge_engine = _JUDGE_ENGINES.get(options.precision, "onnxruntime")
    engine_module(judge_engine).library_version()  # that it is installed: what comes before it takes minutes
    with staged_folder(options.out, replace=options.force) as stage:
        report(f"loading {options.model}")
        loaded = load_model(options.model, weights=options.weights, random_seed=options.random_seed, size=options.size)
        preprocess = preprocess_of(loaded.config)
        model, head = compose(loaded, options)
        images = draw_scenes(REFERENCE_IMAGES, preprocess.size)
        reference = embed_with_torch(model, images)
        judge = Judge.prepare(model, preprocess, options.precision, options.calibrate, report)
        np.savez_compressed(stage / REFERENCE, images=images, embedding=reference)
        report(f"exporting the graph ({options.precision}, opset {graph_file.OPSET})")
        model.set_precision(options.precision)
        inputs, outputs = graph_file.export_graph(model, stage, preprocess.size)
        conversion: m.Conversion | None = None
        if options.precision in _IN_TORCH:
            report(f"computing in {options.precision} with torch, to compare with fp32")
            check_narrow(embed_with_torch(model, images), reference, options.precision)
            conversion = judge.conversion(partial(embed_with_torch, model))
        backbone = _backbone_record(loaded, model.backbone, preprocess.size)
        whitened = model.whitening is not None
        aggregator = m.Aggregator(
            name=options.agg,
            params=model.aggregator.params,
            token_norm=model.token_norm,
            head_sha256=head.sha256(whitened=whitened) if head is not None and (head.tensors or whitened) else None,
        )
        reduced = model.backbone.reduced and not model.aggregator.reads_all
        del model, loaded
        gc.collect()  # large backbones do not fit beside a second copy in the engine
        if options.precision == "int8":
            report(f"quantising, calibrated on {len(judge.calibration)} images")
            quantize_graph(stage / graph_file.FILE, judge.calibration)
        report(f"comparing the graph in {judge_engine} with torch")
        with open_engine(judge_engine, stage / graph_file.FILE) as engine:
            figures = parity.measure(
                lambda pixels: engine.run(pixels)["embedding"], images, reference, engine=engine.name
            )
            parity.check(figures, options.precision)
            if options.precision not in _IN_TORCH:
                conversion = judge.conversion(lambda pixels: engine.run(pixels)["embedding"])
        embedding = m.Embedding(
            dim=reference.shape[1], whitening=f"{reference.shape[1]} dimensions" if whitened else None
        )
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
            conversion=conversion,
            versions=tool_versions(),
            files={},
        )
        write_preprocessor(stage, preprocess)
        write_card(stage, manifest)
        seal(stage, manifest)
    return Artifact.open(options.out)


def _check_calibrate(options: BuildOptions) -> None:
    if options.precision == "int8" and options.calibrate is None:
        raise OptionError("--precision int8 needs real images to calibrate on: --calibrate FOLDER")
    if options.precision == "fp32" and options.calibrate is not None:
        raise OptionError("--calibrate judges a narrower precision; give --precision fp16, bf16 or int8 with it")


def compose(
    loaded: LoadedModel, options: BuildOptions, backbone: Backbone | None = None
) -> tuple[EmbeddingModel, Head | None]:
    """Return the network of `options`, in float32 and evaluation mode, and the head it was given.

    Args:
        loaded: the weights; they become part of the network.
        options: how they are aggregated.
        backbone: one that was made of `loaded` before, to be shared.

    Raises:
        OptionError: an option that does not fit the backbone.
        HeadError: a head that is missing or does not fit.
    """
    backbone = backbone or Backbone(loaded.model)
    head = choose_head(loaded, backbone.shape, options)
    given = {name: value for name, value in options.agg_options.items() if value is not None}
    aggregator = make_aggregator(options.agg, backbone.shape, (head.params if head else {}) | given)
    if head is not None:
        fill(aggregator, head)
    elif any(True for _ in aggregator.parameters()):
        raise HeadError(
            f"aggregator {options.agg} is learned, and no head for {loaded.name} is shipped; fit one:"
            f" mimexport fit --model {loaded.name} --agg {options.agg} --data FOLDER --out head.safetensors,"
            " then build with --head head.safetensors"
        )
    if options.with_selection and not aggregator.has_weights:
        having = ", ".join(name for name, kind in AGGREGATORS.items() if kind.has_weights)
        raise OptionError(f"--with-selection: aggregator {options.agg} gives patches no share; these do: {having}")
    config = loaded.config
    model = EmbeddingModel(
        backbone,
        aggregator,
        options.token_norm or (head.token_norm if head else aggregator.token_norm),
        config["mean"],
        config["std"],
        whitening=_whitening(head, options),
        with_selection=options.with_selection,
    )
    return model.eval(), head


def choose_head(loaded: LoadedModel, shape: Shape, options: BuildOptions) -> Head | None:
    """Return the head asked for, or the one this package ships where one is needed; checked against the backbone.

    Raises:
        UnknownNameError: it is no file and none of those shipped.
        HeadError: no such head, or one that does not fit.
    """
    shipped = shipped_heads(loaded.name, loaded.source, loaded.sha256)
    learned = AGGREGATORS[options.agg].needs_head or options.agg_options.get("score") == "learned"
    name = options.head
    if name is None:
        name = "topk-learned" if options.agg == "topk" and learned else options.agg
        if name not in shipped or not (learned or options.whiten is not None):
            return None
    if name in shipped:
        head = load_head(shipped[name])
    elif name.startswith("hub:"):
        head = load_foreign_head(fetch_ep_head(name.removeprefix("hub:")), shape, options.token_norm)
    elif shipped and Path(name).name == name.partition(".")[0] and not Path(name).exists():
        raise UnknownNameError(f"head of {loaded.name}", name, shipped)
    elif Path(name).suffix == ".safetensors" or not Path(name).suffix:
        head = load_head(Path(name))
    else:
        head = load_foreign_head(Path(name), shape, options.token_norm)
    if head.agg != options.agg:
        raise HeadError(f"the head '{name}' is for aggregator {head.agg}; --agg {options.agg} was given")
    check_fit(head, loaded, shape, options.token_norm)
    return head


def fill(aggregator: Aggregator, head: Head) -> None:
    """Load the head's tensors, all of them.

    Raises:
        HeadError: tensors of another shape or name, or a whitening of other options.
    """
    try:
        aggregator.load_state_dict(head.tensors)
    except RuntimeError as error:
        raise HeadError(f"the head does not fit aggregator {head.agg}: {' '.join(str(error).split())[:200]}") from error
    if head.whitening is not None and aggregator.params != head.params:
        raise HeadError(f"the head was fitted with {head.params}, the aggregator has {aggregator.params}; fit another")


def _whitening(head: Head | None, options: BuildOptions) -> Whitening | None:
    if options.whiten is None:
        return None
    if head is None or head.whitening is None:
        raise HeadError(
            f"--whiten needs a head with a whitening for {options.model} and {options.agg}; fit one: mimexport fit"
            f" --model {options.model} --agg {options.agg} --unlabelled --data FOLDER --out head.safetensors"
        )
    mean, matrix = head.whitening
    if options.whiten > matrix.shape[1]:
        raise OptionError(f"--whiten {options.whiten}: the whitening has {matrix.shape[1]} dimensions")
    return Whitening(mean, matrix, options.whiten or None)


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
        has_cls=backbone.shape.has_cls,
    )
