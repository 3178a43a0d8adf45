"""Which file Triton runs: the ONNX graph, or a TensorRT plan that was compiled from it."""

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
    """What is copied into a version's folder.

    Attributes:
        backend: of Triton.
        name: the file that is loaded.
        sources: files to copy, by their new name.
        least: smallest batch it runs.
        most: largest batch it runs; None is any.

    """

    backend: str
    name: str
    sources: dict[str, Path]
    least: int = 1
    most: int | None = None


def graph_file(artifact: Artifact, engine: str) -> GraphFile:
    """Return what `engine` runs of `artifact`.

    Raises:
        UnknownNameError: another engine than Triton's two.
        OptionError: no plan, or more than one.
        EngineError: a plan that is damaged, was changed, or belongs to another graph.

    """
    if engine not in ENGINES:
        raise UnknownNameError("engine of Triton", engine, ENGINES)
    if engine == "tensorrt":
        return _plan(artifact)
    # External weights lie beside the graph under the name it was saved with.
    prefix = artifact.manifest.graph.file
    files = {name: artifact.path / name for name in artifact.manifest.files if name.startswith(prefix)}
    return GraphFile("onnxruntime", prefix, files)


def _plan(artifact: Artifact) -> GraphFile:
    found = list_compiled(artifact, "tensorrt")
    if not found:
        line = f"mimexport compile {artifact.path} --engine tensorrt"
        raise OptionError(f"{artifact.engines} holds no TensorRT plan; run: {line}")
    if len(found) > 1:
        listed = ", ".join(f"{one.folder.name} ({one.record.hardware})" for one in found)
        raise OptionError(f"{artifact.engines} holds several TensorRT plans: {listed}; keep the one to serve")
    (compiled,) = found
    record = compiled.record
    if record.graph_sha256 != artifact.graph_sha256:
        raise EngineError(f"{compiled.folder} was compiled from another graph; run: {compile_line(artifact, record)}")
    check_files(artifact, compiled)
    sources = {PLAN: compiled.folder / PLAN}
    if record.batch is None:
        return GraphFile("tensorrt", PLAN, sources)
    return GraphFile("tensorrt", PLAN, sources, record.batch.least, record.batch.most)
