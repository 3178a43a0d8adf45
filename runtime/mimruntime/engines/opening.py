"""Open an artifact in an engine, compiled if possible, and check its vectors against torch's."""

from __future__ import annotations

from mimruntime.artifact import Artifact
from mimruntime.engines import ENGINES, engine_module, open_engine
from mimruntime.engines.auto import choose_engine
from mimruntime.engines.base import Engine
from mimruntime.engines.compiled import check_files, choose_compiled
from mimruntime.errors import PrecisionError, UnknownNameError
from mimruntime.reference import compare_few


def open_for(
    artifact: Artifact,
    name: str,
    *,
    provider: str | None = None,
    threads: int | None = None,
    check_reference: bool = True,
) -> Engine:
    """Open an artifact in the engine `name`; use the engine compiled for this machine if there is one.

    Args:
        artifact: the opened artifact.
        name: a name in `ENGINES`, or "auto".
        provider: see `open_engine`.
        threads: see `open_engine`.
        check_reference: compare the vectors of two images with torch's. Engines of schema 1 do not record their artifact
            and are always compared.

    Raises:
        MimError: as `open_engine` and `choose_compiled`.
        ParityError: the vectors differ from those of the artifact.
        ArtifactError: the reference is unusable, or the artifact was replaced meanwhile.

    """
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


def precision_of(artifact: Artifact, engine: Engine) -> str:
    """Return the precision of the matrix products, by the library or else by the graph."""
    return engine.precision or artifact.manifest.graph.precision


def check_precision(artifact: Artifact, engine: Engine, expected: str | None) -> None:
    """Raise PrecisionError if the engine computes in another precision than `expected`; None allows any."""
    runs = precision_of(artifact, engine)
    if expected is not None and expected != runs:
        raise PrecisionError(
            f"{artifact.path} computes in {runs}, expected {expected}; vectors compare, at a loss of neighbours"
        )
