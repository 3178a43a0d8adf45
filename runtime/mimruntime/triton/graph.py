"""Which file Triton runs: the ONNX graph, or a TensorRT plan that was compiled from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from mimruntime.artifact import Artifact, file_sha256
from mimruntime.errors import ArtifactError, OptionError, UnknownNameError

ENGINES = ("onnxruntime", "tensorrt")
_PLAN_SUFFIXES = (".plan", ".engine")


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


class _Profile(msgspec.Struct):
    least: int
    most: int


class _Seal(msgspec.Struct):
    sha256: str


class _Compiled(msgspec.Struct):
    """The part of `engines/<key>/engine.json` that is needed here."""

    engine: str
    graph_sha256: str
    hardware: str = ""
    batch: _Profile | None = None
    files: dict[str, _Seal] = {}


def graph_file(artifact: Artifact, engine: str) -> GraphFile:
    """Return what `engine` runs of `artifact`.

    Raises:
        UnknownNameError: another engine than Triton's two.
        OptionError: no plan, or more than one.
        ArtifactError: a plan that was changed, or belongs to another graph.

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
    found = {}
    for path in sorted(artifact.path.glob("engines/*/engine.json")):
        compiled = msgspec.json.decode(path.read_bytes(), type=_Compiled)
        if compiled.engine == "tensorrt":
            found[path.parent] = compiled
    compile_line = f"mimexport compile {artifact.path} --engine tensorrt"
    if not found:
        raise OptionError(f"{artifact.path}/engines holds no TensorRT plan; run: {compile_line}")
    if len(found) > 1:
        listed = ", ".join(f"{folder.name} ({compiled.hardware})" for folder, compiled in found.items())
        raise OptionError(f"{artifact.path}/engines holds several TensorRT plans: {listed}; keep the one to serve")
    (folder, compiled) = next(iter(found.items()))
    if compiled.graph_sha256 != artifact.graph_sha256:
        raise ArtifactError(f"{folder} was compiled from another graph; run: {compile_line}")
    name = next((name for name in compiled.files if name.endswith(_PLAN_SUFFIXES)), None)
    if name is None or file_sha256(folder / name) != compiled.files[name].sha256:
        raise ArtifactError(f"{folder} holds no plan as it was compiled; run: {compile_line}")
    sources = {"model.plan": folder / name}
    if compiled.batch is None:
        return GraphFile("tensorrt", "model.plan", sources)
    return GraphFile("tensorrt", "model.plan", sources, compiled.batch.least, compiled.batch.most)
