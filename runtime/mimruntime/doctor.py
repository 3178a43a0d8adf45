"""Report what this machine can run: engines with providers and precisions, missing extras, and the choice of `auto`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

from mimruntime.artifact import Artifact
from mimruntime.cpus import available_cpus, describe_cpu, multiplies_bf16
from mimruntime.engines import ENGINES, engine_module
from mimruntime.engines.auto import choose_engine
from mimruntime.engines.base import EngineModule
from mimruntime.engines.compiled import choose_compiled, describe_use, list_compiled
from mimruntime.engines.gpu_name import NO_GPU, gpu_name
from mimruntime.engines.opening import open_for, precision_of
from mimruntime.engines.options import CompileOptions
from mimruntime.errors import EngineError, MimError, MissingExtraError
from mimruntime.installed import is_installed

PURPOSES = {
    "export": "build artifacts from timm's models",
    "cpu": "ONNX Runtime on a CPU",
    "gpu": "ONNX Runtime on an NVIDIA GPU, instead of cpu",
    "openvino": "OpenVINO on a CPU",
    "tensorrt": "TensorRT on an NVIDIA GPU",
    "tensorrt-rtx": "TensorRT for RTX",
    "gpu-decode": "decoding on an NVIDIA GPU, beside gpu",
    "fast": "faster decoding of photographs",
    "heif": "read HEIC",
    "parquet": "tables of vectors",
    "serve": "the HTTP service",
    "browse": "search, and the page on neighbours",
    "grpc": "gRPC beside HTTP",
    "sign": "signed artifacts",
    "eval": "evaluation",
    "ray": "collections on a cluster",
}
"""The purpose of each extra, without those for developers."""
_INSTEAD = {"cpu": "gpu", "gpu": "cpu"}
_EXTRA = re.compile(r"^([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]")
_NO_GPU = "runs nothing here: there is no NVIDIA GPU, or its driver does not answer"
_PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True, slots=True)
class EngineReport:
    """The report on one engine.

    Attributes:
        name: as in `mimruntime.engines.ENGINES`.
        version: version of the library; None if it is missing or does not load.
        runs: precisions of graphs that it runs, by provider; empty if it runs nothing here.
        problem: why it does not run, or not on another provider, and what to do; None without a problem.

    """

    name: str
    version: str | None
    runs: dict[str, tuple[str, ...]]
    problem: str | None


@dataclass(frozen=True, slots=True)
class AutoReport:
    """The choice of `auto` for an artifact.

    Attributes:
        engine: its name; None if no engine opens.
        reason: the reason for the choice.
        ran: provider and precision of the opened engine; None if it does not open.
        problem: why it does not open; None if it does.
        compiled: every compiled engine of the artifact, and whether it is used here.

    """

    engine: str | None
    reason: str
    ran: str | None
    problem: str | None
    compiled: dict[str, str]


@dataclass(frozen=True, slots=True)
class Report:
    """The report of `mimexport doctor`.

    Attributes:
        cpu, cpus, gpu: the hardware.
        bf16: whether the CPU has bf16 instructions.
        engines: reports on all engines.
        missing: extras that are not installed, with the purpose of each.
        auto: the choice for an artifact; None without one.

    """

    cpu: str
    cpus: int
    bf16: bool
    gpu: str
    engines: tuple[EngineReport, ...]
    missing: dict[str, str]
    auto: AutoReport | None

    @property
    def can_run(self) -> bool:
        """Whether the artifact runs here, or without an artifact, any engine."""
        return self.auto.problem is None if self.auto else any(engine.runs for engine in self.engines)


def examine(artifact: Artifact | None = None) -> Report:
    """Examine this machine; with an artifact, also open it with `auto` and check its vectors."""
    gpu = gpu_name()
    return Report(
        cpu=describe_cpu(),
        cpus=available_cpus(),
        bf16=multiplies_bf16(),
        gpu=gpu,
        engines=tuple(_examine_engine(engine_module(name), gpu) for name in ENGINES),
        missing=missing_extras(),
        auto=None if artifact is None else _examine_auto(artifact),
    )


def missing_extras() -> dict[str, str]:
    """Return the extras with a package that is not installed, with the purpose of each."""
    needed: dict[str, list[str]] = {}
    for line in metadata.requires("mimexport") or ():
        if (found := _EXTRA.match(line)) and found[2] in PURPOSES:
            needed.setdefault(found[2], []).append(found[1])
    missing = {extra for extra, names in needed.items() if not all(map(is_installed, names))}
    return {
        extra: purpose
        for extra, purpose in PURPOSES.items()
        if extra in missing and (extra not in _INSTEAD or _INSTEAD[extra] in missing)
    }


def _examine_engine(module: EngineModule, gpu: str) -> EngineReport:
    try:
        version = module.library_version()
    except MissingExtraError:
        extra = "cpu" if module.NAME == "onnxruntime" else module.NAME
        return EngineReport(module.NAME, None, {}, f"not installed; run: pip install 'mimexport[{extra}]'")
    except EngineError as error:  # it is installed, but does not load
        return EngineReport(module.NAME, None, {}, str(error))
    if module.NEEDS_GPU:
        if gpu == NO_GPU:
            return EngineReport(module.NAME, version, {}, _NO_GPU)
        return EngineReport(module.NAME, version, {"cuda": _PRECISIONS}, None)
    runs = {"cpu": tuple(each for each in _PRECISIONS if each in module.CPU_PRECISIONS)}
    problem = None
    if gpu != NO_GPU and "cuda" in getattr(module, "PROVIDERS", ()):
        try:
            module.check_options(CompileOptions(engine=module.NAME, provider="cuda"), "fp32")
            runs["cuda"] = _PRECISIONS
        except EngineError as error:
            problem = str(error)
    return EngineReport(module.NAME, version, runs, problem)


def _examine_auto(artifact: Artifact) -> AutoReport:
    name, reason, compiled = None, "", {}
    try:
        for one in list_compiled(artifact):
            compiled[one.folder.name] = describe_use(artifact, engine_module(one.record.engine), one.record)
        name = choose_engine(artifact)
        reason = _reason(artifact, name)
        with open_for(artifact, name) as engine:
            ran = f"{engine.provider}, {precision_of(artifact, engine)}"
    except MimError as error:
        return AutoReport(name, reason, None, str(error), compiled)
    return AutoReport(name, reason, ran, None, compiled)


def _reason(artifact: Artifact, name: str) -> str:
    chosen = choose_compiled(artifact, engine_module(name))
    if chosen is None:
        precision = artifact.manifest.graph.precision
        return f"nothing is compiled for this machine; it is the first engine that runs {precision} on a CPU"
    tuned = chosen.record.tuned
    rate = f", {tuned.images_per_second:.0f} images/s when it was" if tuned else ""
    return f"{chosen.folder.name} is compiled for this machine{rate}"
