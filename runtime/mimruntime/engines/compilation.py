"""An artifact's graph compiled for one engine and kept beside it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mimruntime.artifact import Artifact
from mimruntime.engines import engine_module, open_engine
from mimruntime.engines.base import EngineModule, Progress
from mimruntime.engines.compiled import Compiled, publish, staged_engine
from mimruntime.engines.options import CompileOptions
from mimruntime.errors import OptionError
from mimruntime.reference import check_engine


def compile_artifact(path: str | Path, options: CompileOptions, progress: Progress = lambda *_: None) -> Compiled:
    """Compile the graph of the artifact at `path` into its `engines/`; whatever fails, no half of it is left.

    Args:
        path: the artifact's folder; every digest is checked first.
        options: the engine, and what it shall be compiled for.
        progress: told the phase, the steps done and the steps there are.

    Raises:
        ArtifactError: the artifact is missing or was changed.
        OptionError: an option that this engine does not take.
        UnknownNameError, MissingExtraError, EngineError: no such engine, or one that cannot do this here.
        ParityError: what was compiled gives other vectors; nothing is kept.
        OutputError: the folder cannot be written.

    """
    artifact = Artifact.open(path)
    module = check_options(options, artifact.manifest.graph.precision)
    with staged_engine(artifact) as stage:
        record = module.compile_engine(artifact, stage, options, progress)
        record = msgspec.structs.replace(record, options=options.given())
        if module.other_hardware(record) is None:  # else it was compiled ahead, for a machine that is not this one
            with open_engine(record.engine, artifact.graph, compiled=Compiled(stage, record)) as engine:
                check_engine(artifact, engine)
        return publish(artifact, stage, record)


def check_options(options: CompileOptions, precision: str) -> EngineModule:
    """Return the module of the engine that `options` name, if it can compile so here, as far as can be said beforehand.

    Args:
        options: what a person asked for.
        precision: of the graph.

    Raises:
        OptionError: an option that this engine does not take, or a value of one.
        UnknownNameError, MissingExtraError: no such engine, provider or architecture, or not installed.
        EngineError: a provider, precision or GPU that is not here.

    """
    module = engine_module(options.engine)
    for name in options.given():
        if name not in module.OPTIONS:
            raise OptionError(
                f"--{name} is not an option of the engine '{options.engine}'; it takes {_dashed(module.OPTIONS)}"
            )
    module.library_version()
    module.check_options(options, precision)
    return module


def _dashed(names: frozenset[str]) -> str:
    return ", ".join(f"--{name}" for name in sorted(names))
