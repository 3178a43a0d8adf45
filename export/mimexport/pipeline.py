"""The steps of a build: load, compose, measure, export, compare, record."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from mimexport import graph as graph_file
from mimexport.build_records import identify, write_records
from mimexport.composition import compose
from mimexport.embedding_model import EmbeddingModel, embed_with_torch
from mimexport.loading import load_any
from mimexport.options import BuildOptions, check_build_options
from mimexport.precision_loss import PrecisionLoss, check_narrow
from mimexport.preprocessing import preprocess_of
from mimexport.quantize import quantize_graph
from mimruntime import manifest as m
from mimruntime import parity
from mimruntime.artifact import REFERENCE, Artifact, staged_folder
from mimruntime.engines import cpu_engine, engine_module, open_engine
from mimruntime.engines.base import EMBEDDING
from mimruntime.synthetic import draw_scenes

REFERENCE_IMAGES = 8
_IN_TORCH = ("fp16", "bf16")
"""Precisions whose loss is measured with torch, because CPU engines may compute them in fp32 instead."""

Report = Callable[[str], None]
_Loss = m.Conversion | None


def build(options: BuildOptions, report: Report = lambda _: None) -> Artifact:
    """Build the artifact that `options` describe; nothing is left in the output folder if the build fails.

    Args:
        options: the build options.
        report: called with one line at the start of each step.

    Raises:
        MimError: the build failed; the message is one line for the user.

    """
    check_build_options(options)
    engine = cpu_engine(options.precision)
    engine_module(engine).library_version()  # fail now if the engine is not installed, not after minutes
    with staged_folder(options.out, replace=options.force) as stage:
        report(f"loading {options.model_name}")
        loaded = load_any(
            options.model, weights=options.weights, random_seed=options.random_seed, size=options.size,
            pixels=options.pixels, license=options.license,
        )  # fmt: skip
        for note in loaded.notes:
            report(f"NOTE: {note}")
        preprocess = preprocess_of(loaded.config)
        model, head = compose(loaded, options)
        reference = _measure(model, preprocess.size, stage)
        identity = identify(loaded, model, head, options, reference[1].shape[1])
        loss = PrecisionLoss.prepare(model, preprocess, options.precision, options.calibrate, report)
        ports, conversion = _export(model, options, stage, reference, loss, report)
        del model, loaded
        gc.collect()  # large backbones do not fit beside a second copy in the engine
        if options.precision == "int8":
            report(f"quantising, calibrated on {len(loss.calibration)} images")
            quantize_graph(stage / graph_file.FILE, loss.calibration)
        figures, in_engine = _compare(engine, options, stage, reference, loss, report)
        write_records(stage, options, identity, ports, figures, conversion or in_engine, loss.statistics())
    return Artifact.open(options.out)


def _measure(model: EmbeddingModel, size: int, stage: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 (n, size, size, 3), and torch's vectors of them, float32 (n, D); store both in `stage`."""
    images = draw_scenes(REFERENCE_IMAGES, size)
    embeddings = embed_with_torch(model, images)
    np.savez_compressed(stage / REFERENCE, images=images, embedding=embeddings)
    return images, embeddings


def _export(
    model: EmbeddingModel,
    options: BuildOptions,
    stage: Path,
    reference: tuple[np.ndarray, np.ndarray],
    loss: PrecisionLoss,
    report: Report,
) -> tuple[tuple[tuple[m.Port, ...], tuple[m.Port, ...]], _Loss]:
    """Write the graph in its precision; return its inputs and outputs, and the loss of fp16 or bf16."""
    report(f"exporting the graph ({options.precision}, opset {graph_file.OPSET})")
    model.set_precision(options.precision)
    ports = graph_file.export_graph(model, stage, reference[0].shape[1])
    conversion: _Loss = None
    if options.precision in _IN_TORCH:
        report(f"computing in {options.precision} with torch, to compare with fp32")
        check_narrow(embed_with_torch(model, reference[0]), reference[1], options.precision)
        conversion = loss.measure(partial(embed_with_torch, model))
    return ports, conversion


def _compare(
    engine_name: str,
    options: BuildOptions,
    stage: Path,
    reference: tuple[np.ndarray, np.ndarray],
    loss: PrecisionLoss,
    report: Report,
) -> tuple[m.Parity, _Loss]:
    """Run the graph in an engine; return its parity with torch, and the loss of int8."""
    report(f"comparing the graph in {engine_name} with torch")
    with open_engine(engine_name, stage / graph_file.FILE) as engine:

        def run(pixels: np.ndarray) -> np.ndarray:
            return engine.run(pixels)[EMBEDDING]

        figures = parity.measure(run, *reference, engine=engine.name)
        parity.check(figures, options.precision)
        lost = loss.measure(run) if options.precision == "int8" else None
    return figures, lost
