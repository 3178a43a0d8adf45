"""What `auto` stands for.

1. Of the engines compiled for this machine: one for a GPU, in the order of the table; else the one that was measured
   to give the most images per second.
2. Where nothing is compiled: openvino where it is installed and the CPU multiplies bf16, or the graph is bf16, which
   onnxruntime cannot run on a CPU; else onnxruntime. A whitened graph must be bf16 itself: whitening can magnify the
   rounding (of [cls], to a cosine of 0.8), and only a build or a compilation compares with torch.

A provider or a number of threads that was asked for leaves out what does not have it. What was compiled for other
hardware is passed over with a line in the log: a GPU that is gone must not become a slow CPU service unseen.
"""

from __future__ import annotations

import logging

from mimruntime.artifact import Artifact
from mimruntime.cpus import MULTIPLY_BF16, cpu_instructions
from mimruntime.engines import ENGINES, engine_module
from mimruntime.engines.compiled import Compiled, choose_compiled, list_compiled, standing
from mimruntime.errors import MissingExtraError

_LOG = logging.getLogger("mimexport")
GPU_ENGINES = ("tensorrt", "tensorrt-rtx")


def choose_engine(artifact: Artifact, provider: str | None = None, threads: int | None = None) -> str:
    """Return the name of the engine that `auto` stands for with this artifact on this machine.

    Args:
        artifact: opened.
        provider: the hardware that was asked for, or None.
        threads: the CPU threads that were asked for, or None.

    Raises:
        EngineError: something compiled for this machine is stale or damaged.

    """
    names = [name for name in ENGINES if threads is None or name not in GPU_ENGINES]
    compiled = {name: one for name in names if (one := _compiled(artifact, name, provider)) is not None}
    on_gpu = [name for name in GPU_ENGINES if name in compiled]
    if on_gpu:
        chosen = on_gpu[0]
    elif compiled:
        chosen = max(compiled, key=lambda name: _rate(compiled[name]))
    else:
        chosen = _default(artifact, provider)
    if provider is None and threads is None:
        for one in list_compiled(artifact):
            if one.record.engine not in compiled:
                why = standing(artifact, engine_module(one.record.engine), one.record)
                _LOG.warning("%s is passed over: it %s; %s runs instead", one.folder, why, chosen)
    return chosen


def _default(artifact: Artifact, provider: str | None) -> str:
    manifest = artifact.manifest
    may_round = manifest.embedding.whitening is None and MULTIPLY_BF16.intersection(cpu_instructions())
    wants_openvino = manifest.graph.precision == "bf16" or may_round
    if provider in {None, "cpu"} and wants_openvino:
        try:
            engine_module("openvino").library_version()
        except MissingExtraError:
            return "onnxruntime"
        return "openvino"
    return "onnxruntime"


def _compiled(artifact: Artifact, name: str, provider: str | None) -> Compiled | None:
    try:
        return choose_compiled(artifact, engine_module(name), provider)
    except MissingExtraError:  # `auto` takes what is installed
        return None


def _rate(compiled: Compiled) -> float:
    return compiled.record.tuned.images_per_second if compiled.record.tuned else 0.0
