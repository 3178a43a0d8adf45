"""Choose the engine for `auto`.

1. If engines are compiled for this machine: the first GPU engine in the table, else the engine with the most measured
   images per second. A log line tells if its `--precision` differs from the graph's precision.
2. Otherwise: the first engine in the table that runs the graph's precision on a CPU. This is openvino for bf16 and
   onnxruntime for the others.

Only engines with the requested provider and support for `threads` are considered. A log line names each compiled engine for
other hardware, so that a missing GPU does not go unnoticed.
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
    """Return the name of the engine that `auto` selects for this artifact on this machine.

    Args:
        artifact: the opened artifact.
        provider: the requested hardware, or None.
        threads: the requested CPU threads, or None.

    Raises:
        EngineError: an engine compiled for this machine is stale or damaged.

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
                _warn_once(f"{chosen} is used instead of {one.folder}, which {why}")
    return chosen


@functools.cache
def _warn_once(text: str) -> None:
    """Log a warning once per process."""
    _LOG.warning("%s", text)


def _say_other_precision(artifact: Artifact, compiled: CompiledEngine) -> None:
    built, asked = artifact.manifest.graph.precision, compiled.record.options.get("precision")
    if asked not in {None, built}:
        _LOG.warning(
            "%s computes in %s, as requested with `compile --precision`; the graph is %s", compiled.folder, asked, built
        )


def _default(artifact: Artifact, provider: str | None) -> str:
    return cpu_engine(artifact.manifest.graph.precision) if provider in {None, "cpu"} else "onnxruntime"


def _compiled(artifact: Artifact, name: str, provider: str | None) -> CompiledEngine | None:
    try:
        return choose_compiled(artifact, engine_module(name), provider)
    except MissingExtraError:  # `auto` skips engines that are not installed
        return None


def _rate(compiled: CompiledEngine) -> float:
    return compiled.record.tuned.images_per_second if compiled.record.tuned else 0.0
