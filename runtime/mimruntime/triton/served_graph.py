"""Choose the file that Triton runs: the ONNX graph, or a TensorRT plan compiled from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mimruntime.artifact import Artifact
from mimruntime.engines.compiled import check_files, compile_line, list_compiled
from mimruntime.engines.trt.engine import PLAN
from mimruntime.errors import EngineError, OptionError, UnknownNameError

ENGINES = ("onnxruntime", "tensorrt")


@dataclass(frozen=True, slots=True)
class GraphFile:
    """The files of a model's version folder.

    Attributes:
        backend: name of Triton's backend.
        name: name of the file to load.
        sources: files to copy, by new name.
        least: smallest supported batch.
        most: largest supported batch; None means no limit.

    """

    backend: str
    name: str
    sources: dict[str, Path]
    least: int = 1
    most: int | None = None


def graph_file(artifact: Artifact, engine: str) -> GraphFile:
    """Return the files of `artifact` that `engine` runs.

    Raises:
        UnknownNameError: the engine is not one of Triton's.
        OptionError: there is no plan, or more than one.
        EngineError: the plan is damaged, changed, or compiled from another graph.

    """
    if engine not in ENGINES:
        raise UnknownNameError("engine of Triton", engine, ENGINES)
    if engine == "tensorrt":
        return _plan(artifact)
    # Files with external weights have names that start with the graph's name.
    prefix = artifact.manifest.graph.file
    files = {name: artifact.path / name for name in artifact.manifest.files if name.startswith(prefix)}
    return GraphFile("onnxruntime", prefix, files)


def _plan(artifact: Artifact) -> GraphFile:
    found = list_compiled(artifact, "tensorrt")
    if not found:
        line = f"mimexport compile {artifact.path} --engine tensorrt"
        raise OptionError(f"{artifact.engines} contains no TensorRT plan; run: {line}")
    if len(found) > 1:
        listed = ", ".join(f"{one.folder.name} ({one.record.hardware})" for one in found)
        raise OptionError(f"{artifact.engines} contains several TensorRT plans: {listed}; keep only the one to serve")
    (compiled,) = found
    record = compiled.record
    if record.graph_sha256 != artifact.graph_sha256:
        raise EngineError(f"{compiled.folder} was compiled from another graph; run: {compile_line(artifact, record)}")
    check_files(artifact, compiled)
    sources = {PLAN: compiled.folder / PLAN}
    if record.batch is None:
        return GraphFile("tensorrt", PLAN, sources)
    return GraphFile("tensorrt", PLAN, sources, record.batch.least, record.batch.most)
