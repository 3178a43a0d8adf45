"""What `auto` stands for.

1. Of the engines compiled for this machine: one for a GPU, in the order of the table; else the one that was measured
   to give the most images per second. One that was asked to compute in another precision than the graph's says so.
2. Where nothing is compiled: the first engine of the table that runs the graph's precision on a CPU, which is openvino
   for bf16 and else onnxruntime.

A provider or a number of threads that was asked for leaves out what does not have it. What was compiled for other
hardware is passed over with a line in the log: a GPU that is gone must not become a slow CPU service unseen.
"""

from __future__ import annotations

import functools
import logging

from mimruntime.artifact import Artifact
from mimruntime.engines import ENGINES, cpu_engine, engine_module
from mimruntime.engines.compiled import choose_compiled, describe_use, list_compiled
from mimruntime.engines.record import CompiledEngine
from mimruntime.errors import MissingExtraError

_LOG = logging.getLogger("mimexport")


def choose_engine(artifact: Artifact, provider: str | None = None, threads: int | None = None) -> str:
    """Return the name of the engine that `auto` stands for with this artifact on this machine.

    Args:
        artifact: opened.
        provider: the hardware that was asked for, or None.
        threads: the CPU threads that were asked for, or None.

    Raises:
        EngineError: something compiled for this machine is stale or damaged.

    """
    names = [name for name in ENGINES if threads is None or not engine_module(name).NEEDS_GPU]
    compiled = {name: one for name in names if (one := _compiled(artifact, name, provider)) is not None}
    on_gpu = [name for name in compiled if engine_module(name).NEEDS_GPU]
    if on_gpu:
        chosen = on_gpu[0]
    elif compiled:
        chosen = max(compiled, key=lambda name: _rate(compiled[name]))
    else:
        chosen = _default(artifact, provider)
    if chosen in compiled:
        _say_other_precision(artifact, compiled[chosen])
    if provider is None and threads is None:
        for one in list_compiled(artifact):
            if one.record.engine not in compiled:
                why = describe_use(artifact, engine_module(one.record.engine), one.record)
                _warn_once(f"{chosen} runs instead of {one.folder}, which {why}")
    return chosen


@functools.cache
def _warn_once(text: str) -> None:
    """Log a warning once a process, however often an artifact is opened."""
    _LOG.warning("%s", text)


def _say_other_precision(artifact: Artifact, compiled: CompiledEngine) -> None:
    built, asked = artifact.manifest.graph.precision, compiled.record.options.get("precision")
    if asked not in {None, built}:
        _LOG.warning("%s computes in %s, as `compile` was asked to; the graph is %s", compiled.folder, asked, built)


def _default(artifact: Artifact, provider: str | None) -> str:
    return cpu_engine(artifact.manifest.graph.precision) if provider in {None, "cpu"} else "onnxruntime"


def _compiled(artifact: Artifact, name: str, provider: str | None) -> CompiledEngine | None:
    try:
        return choose_compiled(artifact, engine_module(name), provider)
    except MissingExtraError:  # `auto` takes what is installed
        return None


def _rate(compiled: CompiledEngine) -> float:
    return compiled.record.tuned.images_per_second if compiled.record.tuned else 0.0
