"""An artifact's graph compiled for one engine and kept beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mimruntime.artifact import Artifact
from mimruntime.engines import engine_module, open_engine
from mimruntime.engines.base import EngineModule, Progress
from mimruntime.engines.compiled import publish, staged_engine
from mimruntime.engines.options import CompileOptions, Hint, parse_batch
from mimruntime.engines.record import CompiledEngine
from mimruntime.errors import OptionError
from mimruntime.reference import check_engine


def compile_artifact(
    path: str | os.PathLike[str], options: CompileOptions, progress: Progress = lambda *_: None
) -> CompiledEngine:
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
            with open_engine(record.engine, artifact.graph, compiled=CompiledEngine(stage, record)) as engine:
                check_engine(artifact, engine)
        return publish(artifact, stage, record)


def compile_engine(
    artifact: str | os.PathLike[str],
    engine: str,
    *,
    provider: str | None = None,
    precision: str | None = None,
    hint: Hint | None = None,
    batch: tuple[int, int, int] | None = None,
    threads: int | None = None,
    arch: Sequence[str] = (),
    hardware_compat: str | None = None,
    tf32: bool = False,
    workspace: float | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    progress: Progress = lambda *_: None,
) -> CompiledEngine:
    """Compile an artifact's graph for an engine into its folder `engines/`, and measure the best batch and threads.

    >>> from mimruntime import compile_engine
    >>> compiled = compile_engine("artifacts/tiny", "onnxruntime", threads=1)
    >>> compiled.record.engine, compiled.record.precision
    ('onnxruntime', 'fp32')

    Args:
        artifact: the artifact, or its folder; every digest is checked first.
        engine: "onnxruntime", "openvino", "tensorrt" or "tensorrt-rtx".
        provider: the hardware, by the engine's own name.
        precision: openvino: "bf16" for the products of an fp32 graph.
        hint: openvino: tune for "throughput" or "latency".
        batch: smallest, best and largest number of images of one run; on a CPU the best alone counts.
        threads: CPU threads; None is what was measured to be best.
        arch: tensorrt-rtx: GPU architectures, for example ["sm86", "sm89"]; no GPU is needed.
        hardware_compat: tensorrt: "none", "ampere+" or "same".
        tf32: tensorrt, tensorrt-rtx: fp32 products with 10 bits of mantissa.
        workspace: tensorrt, tensorrt-rtx: scratch memory of the builder, GB.
        timing_cache: tensorrt: file of kernel timings.
        progress: told the phase, the steps done and the steps there are.

    Returns:
        The folder and its record; `Embedder.open` takes it where it fits the machine.

    Raises:
        MimError: an option that this engine does not take, an engine that cannot do this here, or other vectors than
            torch's. Nothing half-written stays.

    """
    options = CompileOptions(
        engine=engine,
        provider=provider,
        precision=precision,
        hint=hint,
        batch=None if batch is None else parse_batch(",".join(map(str, batch))),
        threads=threads,
        arch=tuple(arch),
        hardware_compat=hardware_compat,
        tf32=tf32,
        workspace=workspace,
        timing_cache=None if timing_cache is None else Path(timing_cache),
    )
    return compile_artifact(artifact, options, progress)


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
