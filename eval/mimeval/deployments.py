"""Open all artifacts in all requested engines, and record why others cannot run."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import PIL

import mimruntime
from mimruntime import resampling
from mimruntime.artifact import REFERENCE, Artifact, file_sha256
from mimruntime.cpus import describe_cpu
from mimruntime.decoding import turbo
from mimruntime.embedder import Embedder
from mimruntime.engines import ENGINES
from mimruntime.engines import record as records
from mimruntime.engines.base import Engine
from mimruntime.errors import EngineError, MissingExtraError, OptionError, UnknownNameError

BATCH_SIZE = 8
_TORCH = "torch"
"""Not an engine for deployment; in fp16 or bf16 it shows the loss of the precision on any machine."""
NARROWING = ("fp32", "fp16", "bf16", "int8")
"""Precisions from widest to narrowest."""


class OpenReferences(Protocol):
    """Function that opens the torch models of artifacts as engines."""

    def __call__(self, artifacts: Sequence[Artifact], *, narrow: bool = False) -> Sequence[Engine]:
        """Open them in float32, or in the precisions of their graphs."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A requested engine.

    Attributes:
        engine: a name in `mimruntime.engines.ENGINES`, or "torch".
        precision: precision of the graphs to run; None means any.
        required: whether it was given by name; then a failure is an error and not only a line in the report.

    """

    engine: str
    precision: str | None
    required: bool


@dataclass(frozen=True, slots=True)
class SkippedDeployment:
    """A deployment that did not run.

    Attributes:
        artifact: name of the artifact.
        deployment: engine and precision.
        reason: one line.
        kind: "missing" if the engine's library is not installed, "refused" if it cannot run this.

    """

    artifact: str
    deployment: str
    reason: str
    kind: Literal["missing", "refused"]


@dataclass(frozen=True, slots=True, eq=False)
class Deployment:
    """An artifact opened in an engine.

    Attributes:
        artifact: the artifact.
        embedder: the opened embedder.
        name: engine and precision; equal for artifacts that are compared with each other.

    """

    artifact: Artifact
    embedder: Embedder
    name: str

    @property
    def precision(self) -> str:
        """The narrower of the graph's and the engine's precision; it determines the expected loss."""
        return max(self.artifact.manifest.graph.precision, self.embedder.describe().precision, key=NARROWING.index)

    @property
    def identity(self) -> str:
        """Text that changes whenever the vectors might: graph files, preprocessing, engine, version and hardware.

        It also includes the compiled engine.
        """
        files = self.artifact.manifest.files
        graph = sorted((name, digest) for name, digest in files.items() if name.startswith("model."))
        about = self.embedder.describe()
        running = (about.engine, about.provider, about.precision, about.batch_sizes)
        compiled = ""
        if about.compiled is not None:
            record = self.artifact.engines / about.compiled / records.FILE
            compiled = f" {about.compiled} {file_sha256(record)}"
        return f"{graph} {self.artifact.manifest.preprocess} {running} {code_digest()}{compiled} on {describe_cpu()}"


def reference_identity(artifact: Artifact, engine: Engine) -> str:
    """Return text that changes whenever torch's vectors might; the same for every precision of one model."""
    stored = artifact.manifest.files.get(REFERENCE, "")
    # The device too: results of a GPU differ in the last bits, and vectors of [cls] differ by little more.
    running = (engine.name, engine.provider, engine.version, sorted(engine.outputs))
    return f"{artifact.manifest.embedding_space} {stored} {running} {code_digest()}"


@cache
def code_digest() -> str:
    """Return the digest of the code that turns an image into a vector, so that cached features of other code are not used."""
    root = Path(mimruntime.__file__).parent
    files = [
        root / f"{name}.py" for name in ("decode", "preparation", "preprocess", "resampling", "embedder", "batching")
    ]
    for room in ("decoding", "engines"):
        files += sorted(root.glob(f"{room}/**/*.py"))
    digest = hashlib.sha256(f"Pillow {PIL.__version__} {_faster_libraries()}".encode())  # they decode and resize
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _faster_libraries() -> list[str]:
    names = {"simplejpeg": turbo.library(), "cykooz-resizer": resampling.library()}
    return [f"{name} {importlib.metadata.version(name)}" for name, library in names.items() if library]


def parse_engines(texts: Sequence[str]) -> list[EngineRequest]:
    """Parse values of `--engine`: "all", or any number of "NAME" and "NAME:PRECISION".

    Raises:
        UnknownNameError: there is no such engine.
        OptionError: "all" is combined with others, or torch has no or another precision than fp16 and bf16.

    """
    if "all" in texts:
        if len(texts) > 1:
            raise OptionError("--engine all cannot be combined with other engines")
        return [EngineRequest(name, None, required=False) for name in ENGINES]
    wanted = []
    for text in dict.fromkeys(texts):
        name, _, precision = text.partition(":")
        if name not in {*ENGINES, _TORCH}:
            raise UnknownNameError("engine", name, [*ENGINES, _TORCH, "all"])
        if name == _TORCH and precision not in {"fp16", "bf16"}:
            raise OptionError(
                f"--engine {text}: torch in fp32 is always the reference, and torch has no int8;"
                " expected torch:bf16 or torch:fp16"
            )
        if precision and name in texts:
            raise OptionError(f"--engine {text}: --engine {name} already includes it; leave one out")
        wanted.append(EngineRequest(name, precision or None, required=True))
    return wanted


def deploy(
    artifacts: Sequence[Artifact],
    wanted: Sequence[EngineRequest],
    skipped: list[SkippedDeployment],
    open_references: OpenReferences,
) -> Iterator[Deployment]:
    """Yield each artifact in each engine, opened one at a time; deployments that do not run are added to `skipped`.

    Args:
        artifacts: the artifacts.
        wanted: the requested engines.
        skipped: receives deployments that do not run.
        open_references: opens torch models.

    Raises:
        EngineError, MissingExtraError: an engine given by name does not run.
        OptionError: an engine given by name does not accept an option, or no artifact has the given precision.

    """
    for ask in wanted:
        fitting = [a for a in artifacts if ask.precision in {None, a.manifest.graph.precision}]
        if not fitting and ask.required:
            have = ", ".join(sorted({artifact.manifest.graph.precision for artifact in artifacts}))
            raise OptionError(
                f"--engine {ask.engine}:{ask.precision}: no artifact has this precision; they have {have}"
            )
        for artifact in fitting:
            name = f"{ask.engine} {artifact.manifest.graph.precision}"
            try:
                if ask.engine == _TORCH:
                    (engine,) = open_references([artifact], narrow=True)
                    embedder = Embedder(artifact, engine, batch_size=BATCH_SIZE)
                else:
                    embedder = open_embedder(artifact, ask.engine)
            except (EngineError, MissingExtraError, OptionError) as error:
                if ask.required:
                    raise
                kind: Literal["missing", "refused"] = "missing" if isinstance(error, MissingExtraError) else "refused"
                skipped.append(SkippedDeployment(artifact.manifest.name, name, str(error), kind))
                continue
            with embedder:
                yield Deployment(artifact, embedder, _running_name(name, artifact, embedder))


def open_embedder(artifact: Artifact, engine: str) -> Embedder:
    """Open `artifact` in `engine`, with batches of `BATCH_SIZE` if the compiled engine supports that size.

    The reference is not checked, because the evaluation measures the difference from torch.

    Raises:
        MimError: as `Embedder.open`.

    """
    try:
        return Embedder.open(artifact.path, engine=engine, batch_size=BATCH_SIZE, check_reference=False)
    except OptionError:
        return Embedder.open(artifact.path, engine=engine, check_reference=False)


def _running_name(name: str, artifact: Artifact, embedder: Embedder) -> str:
    """Return `name` with the precision of the run, if it differs from the graph's, and the hardware, if it is not the CPU."""
    about = embedder.describe()
    computed = "" if about.precision == artifact.manifest.graph.precision else f" in {about.precision}"
    return f"{name}{computed}" if about.provider == "cpu" else f"{name}{computed} on {about.provider}"
