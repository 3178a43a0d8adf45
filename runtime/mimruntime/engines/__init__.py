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


def cpu_engine(precision: str) -> str:
    """Return the first engine that runs graphs of this precision on a CPU, installed or not."""
    return next(name for name in ENGINES if precision in engine_module(name).CPU_PRECISIONS)


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


def open_for(
    artifact: Artifact,
    name: str,
    *,
    provider: str | None = None,
    threads: int | None = None,
    check_reference: bool = True,
) -> Engine:
    """Open an artifact's graph in the engine `name`, or "auto", as it was compiled for this machine where it was.

    Args:
        artifact: opened.
        name: one of `ENGINES`, or "auto".
        provider: see `open_engine`.
        threads: see `open_engine`.
        check_reference: compare its vectors of two images with those of torch. An engine whose record does not say for
            which artifact it was compiled, as records of schema 1, is always compared.

    Raises:
        MimError: as `open_engine` and `choose_compiled`.
        ParityError: its vectors are not those of the artifact.
        ArtifactError: no usable reference, or the artifact was replaced meanwhile.

    """
    from mimruntime.engines.auto import choose_engine  # noqa: PLC0415 - they import this table
    from mimruntime.engines.compiled import check_files, choose_compiled  # noqa: PLC0415
    from mimruntime.reference import compare_few  # noqa: PLC0415

    if name != "auto" and name not in ENGINES:
        raise UnknownNameError("engine", name, [*ENGINES, "auto"])
    chosen = choose_engine(artifact, provider, threads) if name == "auto" else name
    compiled = choose_compiled(artifact, engine_module(chosen), provider)
    if compiled is not None:
        check_files(artifact, compiled)
    engine = open_engine(chosen, artifact.graph, provider=provider, threads=threads, compiled=compiled)
    try:
        if check_reference or (compiled is not None and not compiled.record.artifact_sha256):
            compare_few(artifact, engine)
        artifact.check_in_place()
    except BaseException:
        engine.close()
        raise
    return engine
