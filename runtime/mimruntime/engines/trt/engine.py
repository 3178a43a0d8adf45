"""Compile and open plans; `engines/tensorrt.py` and `engines/tensorrt_rtx.py` bind these functions to a library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mimruntime.artifact import Artifact
from mimruntime.engines.base import Engine, Progress
from mimruntime.engines.compiled import list_compiled
from mimruntime.engines.options import CompileOptions
from mimruntime.engines.record import BatchProfile, CompiledEngine, EngineRecord
from mimruntime.engines.trt import builder, cuda
from mimruntime.engines.trt.executor import Executor
from mimruntime.engines.trt.flavour import Flavour
from mimruntime.engines.trt.messages import Messages, contained_stderr, make_logger, uncollected
from mimruntime.engines.trt.plan import BuildPlan, misfit
from mimruntime.errors import EngineError, OptionError, UnknownNameError

PROVIDER = "cuda"
PLAN = "model.plan"
_BATCH = BatchProfile(least=1, best=8, most=32)


def check_options(flavour: Flavour, options: CompileOptions, precision: str) -> None:
    """Raise an error if the plan cannot be built on this machine; see `mimruntime.engines.base.EngineModule`."""
    _plan(flavour, options, precision).check()
    if not flavour.architectures:
        probe(flavour)


def compile_engine(
    flavour: Flavour, artifact: Artifact, folder: Path, options: CompileOptions, progress: Progress
) -> EngineRecord:
    """Build the plan of an artifact's graph into `folder`; see `mimruntime.engines.base.EngineModule`."""
    plan = _plan(flavour, options, artifact.manifest.graph.precision)
    trt = flavour.load()
    gpu = None if flavour.architectures else probe(flavour)
    (folder / PLAN).write_bytes(builder.build(trt, artifact.graph, plan, progress))
    return EngineRecord(
        engine=flavour.name,
        version=trt.__version__,
        precision=plan.precision,
        graph_sha256=artifact.graph_sha256,
        provider=PROVIDER,
        hardware=plan.hardware(gpu),
        batch=plan.batch,
    )


def other_hardware(flavour: Flavour, record: EngineRecord) -> str | None:
    """Return why a plan does not run on this machine, as a clause without its subject, or None."""
    try:
        gpu = probe(flavour)
    except EngineError as error:
        return f"does not run here: {error}"
    return misfit(flavour, record.hardware, gpu)


def open_engine(
    flavour: Flavour, graph: Path, *, provider: str | None, threads: int | None, compiled: CompiledEngine | None
) -> TensorRtEngine:
    """Open the plan compiled from `graph`; see `mimruntime.engines.open_engine`."""
    if provider not in {None, PROVIDER}:
        raise UnknownNameError(f"provider of the engine '{flavour.name}'", str(provider), [PROVIDER])
    if threads is not None:
        raise OptionError(f"--threads {threads}: the engine '{flavour.name}' runs on the GPU; leave it out")
    trt = flavour.load()
    gpu = probe(flavour)  # first, because without a driver the library's runtime crashes the process
    if compiled is None:
        raise _no_plan(flavour, graph, gpu)
    messages = Messages()
    logger = make_logger(trt, messages)
    with contained_stderr(), uncollected():
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine((compiled.folder / PLAN).read_bytes())
    if engine is None:
        raise messages.failure(f"{flavour.name} {trt.__version__} cannot load {compiled.folder / PLAN}")
    device = cuda.CudaDevice(_purpose(flavour), flavour.name)
    return TensorRtEngine(
        flavour, trt.__version__, Executor(trt, engine, device, messages), compiled, (runtime, logger)
    )


def probe(flavour: Flavour) -> cuda.Gpu:
    """Return this machine's GPU; see `mimruntime.engines.trt.cuda.probe`."""
    return cuda.probe(_purpose(flavour), flavour.name)


class TensorRtEngine(Engine):
    """A plan loaded on a GPU."""

    def __init__(
        self, flavour: Flavour, version: str, executor: Executor, compiled: CompiledEngine, kept: tuple[Any, ...]
    ) -> None:
        self.name = flavour.name
        self.provider = PROVIDER
        self.version = version
        self.pixel_shape = executor.pixel_shape
        self.outputs = executor.outputs
        self.precision = compiled.record.precision
        self.largest_batch = executor.sizes[-1]
        self.best_batch = compiled.record.batch.best if compiled.record.batch else None
        self.compiled = compiled.folder.name
        self._executor = executor
        self._kept = kept  # the runtime and its logger must outlive the engine

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """See base class."""
        return self._executor.run(pixels)

    def _close(self) -> None:
        """See base class."""
        self._executor.close()


def _plan(flavour: Flavour, options: CompileOptions, precision: str) -> BuildPlan:
    return BuildPlan(
        flavour=flavour,
        precision=precision,
        batch=options.batch or _BATCH,
        architectures=options.arch,
        hardware_compatibility=options.hardware_compat or "none",
        tf32=options.tf32,
        workspace_gib=options.workspace,
        timing_cache=options.timing_cache,
    )


def _purpose(flavour: Flavour) -> str:
    return f"the engine '{flavour.name}'"


def _no_plan(flavour: Flavour, graph: Path, gpu: cuda.Gpu) -> EngineError:
    """Return the error for an artifact without a plan for this GPU, with the command to run."""
    arch = f" --arch {gpu.arch}" if flavour.architectures and gpu.arch in flavour.architectures else ""
    mend = flavour.refused.get(gpu.arch) or f"run: mimexport compile {graph.parent} --engine {flavour.name}{arch}"
    there = [f"{one.folder.name} {misfit(flavour, one.record.hardware, gpu)}" for one in _plans(flavour, graph)]
    found = "; ".join(there) or f"{graph.parent} holds no plan of {flavour.name} for {gpu}"
    return EngineError(f"{found}; {mend}")


def _plans(flavour: Flavour, graph: Path) -> list[CompiledEngine]:
    return list_compiled(Artifact.open(graph.parent), flavour.name)
