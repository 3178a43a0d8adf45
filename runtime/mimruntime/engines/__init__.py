"""The engines by name: one file each, imported only when it is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from mimruntime.errors import OptionError, UnknownNameError

if TYPE_CHECKING:
    from mimruntime.engines.base import Engine

ENGINES = {"onnxruntime": "mimruntime.engines.onnxruntime"}
"""Name to the module whose `open_engine` opens it."""

AUTO = ("onnxruntime",)
"""What `auto` stands for: the first of these. The others run only when they are asked for by name."""


def open_engine(name: str, graph: Path, *, provider: str | None = None, threads: int | None = None) -> Engine:
    """Open the graph at `graph` in the engine `name`, on `provider` and on no other.

    Args:
        name: one of `ENGINES`, or "auto".
        graph: the ONNX file of an artifact, or one that is still being built.
        provider: the engine's own name of the hardware to run on; None is its default, the CPU.
        threads: CPU threads of one run; None is every CPU this process may use.

    Raises:
        UnknownNameError: no such engine, or no such provider of it.
        MissingExtraError: its library is not installed.
        EngineError: it cannot load this graph, or not on this provider.
        OptionError: fewer than one thread.

    """
    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, got {threads}")
    chosen = AUTO[0] if name == "auto" else name
    if chosen not in ENGINES:
        raise UnknownNameError("engine", name, [*ENGINES, "auto"])
    engine: Engine = importlib.import_module(ENGINES[chosen]).open_engine(graph, provider=provider, threads=threads)
    return engine
