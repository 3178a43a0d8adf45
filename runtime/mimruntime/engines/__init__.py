"""The engines by name: one file each, imported only when it is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mimruntime.engines.base import EMBEDDING
from mimruntime.errors import EngineError, OptionError, UnknownNameError

if TYPE_CHECKING:
    from mimruntime.engines.base import Engine, EngineModule
    from mimruntime.engines.record import CompiledEngine

ENGINES = {
    "onnxruntime": "mimruntime.engines.onnxruntime",
    "openvino": "mimruntime.engines.openvino",
    "tensorrt": "mimruntime.engines.tensorrt",
    "tensorrt-rtx": "mimruntime.engines.tensorrt_rtx",
}
"""Name to the module that holds the names of `mimruntime.engines.base.EngineModule`."""


def engine_module(name: str) -> EngineModule:
    """Return the module of the engine `name`; its library is not imported yet.

    Raises:
        UnknownNameError: no such engine.

    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, [*ENGINES])
    return cast("EngineModule", importlib.import_module(ENGINES[name]))


def cpu_engine(precision: str) -> str:
    """Return the first engine that runs graphs of this precision on a CPU, installed or not."""
    return next(name for name in ENGINES if precision in engine_module(name).CPU_PRECISIONS)


def open_engine(
    name: str,
    graph: Path,
    *,
    provider: str | None = None,
    threads: int | None = None,
    compiled: CompiledEngine | None = None,
) -> Engine:
    """Open the graph at `graph` in the engine `name`, on `provider` and on no other.

    Args:
        name: one of `ENGINES`.
        graph: the ONNX file of an artifact, or one that is still being built.
        provider: the engine's own name of the hardware to run on; None is its default.
        threads: CPU threads of one run; None is what was tuned, or else every CPU this process may use.
        compiled: what `choose_compiled` gave.

    Raises:
        UnknownNameError: no such engine, or no such provider of it.
        MissingExtraError: its library is not installed.
        EngineError: it cannot load this graph, or not on this provider.
        OptionError: fewer than one thread.

    """
    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, got {threads}")
    engine = engine_module(name).open_engine(graph, provider=provider, threads=threads, compiled=compiled)
    if EMBEDDING not in engine.outputs:
        engine.close()
        raise EngineError(f"{graph} has outputs {', '.join(engine.outputs)}; expected '{EMBEDDING}'")
    return engine
