"""Example of a user's engine: the graph run by ONNX's reference evaluator in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from mimruntime.artifact import Artifact
from mimruntime.engines.base import Engine, Progress
from mimruntime.engines.options import CompileOptions
from mimruntime.engines.record import CompiledEngine, EngineRecord

NAME = "numpy"
NEEDS_GPU = False
CPU_PRECISIONS = frozenset({"fp32"})
OPTIONS: frozenset[str] = frozenset()


def library_version() -> str:
    return np.__version__


def other_hardware(record: EngineRecord) -> str | None:
    return None


def open_engine(
    graph: Path, *, provider: str | None, threads: int | None, compiled: CompiledEngine | None = None
) -> Engine:
    return NumpyEngine(graph, compiled)


def check_options(options: CompileOptions, precision: str) -> None:
    pass


def compile_engine(artifact: Artifact, folder: Path, options: CompileOptions, progress: Progress) -> EngineRecord:
    (folder / "note.txt").write_text("numpy needs no compilation")
    made = {"engine": NAME, "version": library_version(), "provider": "cpu", "hardware": "any"}
    return EngineRecord(precision="fp32", graph_sha256=artifact.graph_sha256, **made)


class NumpyEngine(Engine):
    def __init__(self, graph: Path, compiled: CompiledEngine | None) -> None:
        model = onnx.load(graph)
        self.name, self.provider, self.version, self.precision = NAME, "cpu", library_version(), "fp32"
        self.pixel_shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)[1:]
        self.outputs = tuple(port.name for port in model.graph.output)
        self.compiled = compiled.folder.name if compiled else None
        self._session = ReferenceEvaluator(model)

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self._session.run(None, {"pixels": pixels}), strict=True))

    def _close(self) -> None:
        pass
