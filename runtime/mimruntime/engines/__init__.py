"""The table of engines by name; each has its own module, imported on first use."""

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
"""Engine name to module; each module implements `mimruntime.engines.base.EngineModule`."""


def engine_module(name: str) -> EngineModule:
    """Return the module of the engine `name`, without importing its library.

    Raises:
        UnknownNameError: no such engine.

    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, [*ENGINES])
    return cast("EngineModule", importlib.import_module(ENGINES[name]))


def cpu_engine(precision: str) -> str:
    """Return the name of the first engine in the table that runs graphs of this precision on a CPU, installed or not."""
    return next(name for name in ENGINES if precision in engine_module(name).CPU_PRECISIONS)


def open_engine(
    name: str,
    graph: Path,
    *,
    provider: str | None = None,
    threads: int | None = None,
    compiled: CompiledEngine | None = None,
) -> Engine:
    """Open the ONNX file `graph` in the engine `name`, only on `provider`.

    Args:
        name: a name in `ENGINES`.
        graph: the ONNX file of an artifact or of a build in progress.
        provider: the engine's own name for the hardware; None takes its default.
        threads: CPU threads of one run; None takes the tuned number, else all CPUs of this process.
        compiled: the result of `choose_compiled`.

    Raises:
        UnknownNameError: there is no such engine or provider.
        MissingExtraError: the library is not installed.
        EngineError: the engine cannot load this graph, or not on this provider.
        OptionError: `threads` is below 1.

    """
    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, got {threads}")
    engine = engine_module(name).open_engine(graph, provider=provider, threads=threads, compiled=compiled)
    if EMBEDDING not in engine.outputs:
        engine.close()
        raise EngineError(f"{graph} has outputs {', '.join(engine.outputs)}; expected '{EMBEDDING}'")
    return engine
