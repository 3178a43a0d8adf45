"""Compile an artifact's graph for one engine into the artifact."""

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
    """Compile the graph of the artifact at `path` into its folder `engines/`; nothing is left there on failure.

    Args:
        path: the artifact folder; all digests are checked first.
        options: the engine and its compile options.
        progress: called with the phase, the number of steps done and the total.

    Raises:
        ArtifactError: the artifact is missing or was changed.
        OptionError: the engine does not accept an option.
        UnknownNameError, MissingExtraError, EngineError: there is no such engine, or it cannot compile on this machine.
        ParityError: the compiled engine gives other vectors.
        OutputError: the folder is not writable.

    """
    artifact = Artifact.open(path)
    module = check_options(options, artifact.manifest.graph.precision)
    with staged_engine(artifact) as stage:
        record = module.compile_engine(artifact, stage, options, progress)
        record = msgspec.structs.replace(record, options=options.given())
        if module.other_hardware(record) is None:  # otherwise it was compiled for another machine
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
    """Compile an artifact's graph for an engine, and measure the best batch and threads; write it to the folder `engines/`.

    >>> from mimruntime import compile_engine
    >>> compiled = compile_engine("artifacts/tiny", "onnxruntime", threads=1)
    >>> compiled.record.engine, compiled.record.precision
    ('onnxruntime', 'fp32')

    Args:
        artifact: the artifact, or its folder; all digests are checked first.
        engine: "onnxruntime", "openvino", "tensorrt" or "tensorrt-rtx".
        provider: the hardware, by the engine's own name.
        precision: openvino: "bf16" computes the products of an fp32 graph in bf16.
        hint: on a CPU: tune for "throughput" or "latency".
        batch: smallest, best and largest number of images per run; on a CPU only the best is used.
        threads: CPU threads; None measures the best.
        arch: tensorrt-rtx: GPU architectures, for example ["sm86", "sm89"]; no GPU is needed.
        hardware_compat: tensorrt: other GPUs the plan runs on: "none", "ampere+" or "same".
        tf32: tensorrt, tensorrt-rtx: compute fp32 products with 10 bits of mantissa.
        workspace: tensorrt, tensorrt-rtx: scratch memory of the builder, GiB.
        timing_cache: tensorrt: file of kernel timings, read and written.
        progress: called with the phase, the number of steps done and the total.

    Returns:
        The folder and its record; `Embedder.open` uses it on machines it fits.

    Raises:
        MimError: the engine does not accept an option, cannot compile on this machine, or gives other vectors than torch.
            No partial result is left.

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
    """Check compile options without compiling, and return the module of their engine.

    Args:
        options: the compile options.
        precision: precision of the graph.

    Raises:
        OptionError: the engine does not accept an option or its value.
        UnknownNameError, MissingExtraError: there is no such engine, provider or architecture, or it is not installed.
        EngineError: this machine lacks the provider, precision or GPU.

    """
    module = engine_module(options.engine)
    for name in options.given():
        if name not in module.OPTIONS:
            raise OptionError(
                f"--{name} is not an option of the engine '{options.engine}'; its options are {_dashed(module.OPTIONS)}"
            )
    module.library_version()
    module.check_options(options, precision)
    return module


def _dashed(names: frozenset[str]) -> str:
    return ", ".join(f"--{name}" for name in sorted(names))
