"""An artifact opened in an engine: the one that was compiled for this machine, checked against torch's vectors."""

from __future__ import annotations

from mimruntime.artifact import Artifact
from mimruntime.engines import ENGINES, engine_module, open_engine
from mimruntime.engines.auto import choose_engine
from mimruntime.engines.base import Engine
from mimruntime.engines.compiled import check_files, choose_compiled
from mimruntime.errors import UnknownNameError
from mimruntime.reference import compare_few


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
