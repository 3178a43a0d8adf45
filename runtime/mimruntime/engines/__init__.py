"""The engines by name: one file each, imported only when it is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mimruntime.engines.base import EMBEDDING
from mimruntime.errors import EngineError, OptionError, UnknownNameError

if TYPE_CHECKING:
    from mimruntime.artifact import Artifact
    from mimruntime.engines.base import Engine, EngineModule
    from mimruntime.engines.compiled import Compiled

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


def open_engine(
    name: str,
    graph: Path,
    *,
    provider: str | None = None,
    threads: int | None = None,
    compiled: Compiled | None = None,
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


def open_for(artifact: Artifact, name: str, *, provider: str | None = None, threads: int | None = None) -> Engine:
    """Open an artifact's graph in the engine `name`, or "auto", as it was compiled for this machine where it was.

    Raises:
        MimError: as `open_engine` and `choose_compiled`.

    """
    from mimruntime.engines.auto import choose_engine  # noqa: PLC0415 - they import this table
    from mimruntime.engines.compiled import check_files, choose_compiled  # noqa: PLC0415

    if name != "auto" and name not in ENGINES:
        raise UnknownNameError("engine", name, [*ENGINES, "auto"])
    chosen = choose_engine(artifact, provider, threads) if name == "auto" else name
    compiled = choose_compiled(artifact, engine_module(chosen), provider)
    if compiled is not None:
        check_files(artifact, compiled)
    return open_engine(chosen, artifact.graph, provider=provider, threads=threads, compiled=compiled)
