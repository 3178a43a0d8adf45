"""The engine `onnxruntime`; it never falls back to another provider."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mimruntime.artifact import Artifact
from mimruntime.cpus import available_cpus, describe_cpu
from mimruntime.engines.base import Engine, Progress, Setting
from mimruntime.engines.gpu_name import NO_GPU, gpu_name
from mimruntime.engines.options import CompileOptions
from mimruntime.engines.record import CompiledEngine, EngineRecord, Trial
from mimruntime.engines.tuning import BATCHES, check_hint, cpu_choices, tune
from mimruntime.errors import EngineError, MissingExtraError, OptionError, UnknownNameError
from mimruntime.installed import is_installed
from mimruntime.reference import load_reference

NAME = "onnxruntime"
NEEDS_GPU = False
CPU_PRECISIONS = frozenset({"fp32", "fp16", "int8"})
OPTIONS = frozenset({"provider", "hint", "batch", "threads"})
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}

_CUDA_OPTIONS = {
    "use_tf32": "0",  # fp32 means fp32
    "arena_extend_strategy": "kSameAsRequested",  # allocate what is needed, do not double
    "cudnn_conv_algo_search": "HEURISTIC",  # a search would take 0.1 s for every new batch size
}
LEFT_OUT = {"cpu": ("BiasGeluFusion",)}
"""Optimisations to disable by provider: bias and GELU are faster as two operators (docs/results/graph.md)."""
_GPU_BATCHES = (*BATCHES, 32, 64, 128)
_LOG_ERRORS, _LOG_FATAL = 3, 4
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Environment variable that ONNX Runtime reads when it is imported; without it, it sends usage data to its maker."""
_NO_BF16 = "has no bf16 kernels on a CPU: run a bf16 artifact with --engine openvino"
_REMEDIES = {
    "cuda": "check the NVIDIA driver, and that CUDA and cuDNN are found: pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "tensorrt": "ONNX Runtime needs TensorRT 10, version 11 does not load: pip install 'tensorrt-cu13<11' (cu12 if it"
    " was built for CUDA 12)",
}


def library_version() -> str:
    """Return the version of ONNX Runtime."""
    return str(_library().__version__)


def other_hardware(record: EngineRecord) -> str | None:
    """Return why a record was tuned for another machine, or None."""
    here = _hardware(record.provider)
    return None if record.hardware == here else f"is for {record.hardware}; this machine has {here}"


def open_engine(
    graph: Path, *, provider: str | None, threads: int | None, compiled: CompiledEngine | None = None
) -> Engine:
    """Open `graph` on `provider`, by default "cpu"; see `mimruntime.engines.open_engine`."""
    asked = provider or (compiled.record.provider if compiled else "cpu")
    tuned = compiled.record.tuned if compiled else None
    setting = Setting(threads or available_cpus())
    if tuned and threads in {None, tuned.threads}:
        setting = Setting(tuned.threads, tuned.streams)
    engine = _open_graph(graph, asked, setting)
    engine.compiled = compiled.folder.name if compiled else None
    engine.best_batch = tuned.batch if tuned else None
    return engine


def open_session(graph: Path, *, provider: str, threads: int, stream: int | None = None) -> Any:
    """Return a session of ONNX Runtime that runs `graph` on `provider` alone.

    Args:
        graph: an ONNX file.
        provider: a name in `PROVIDERS`.
        threads: CPU threads of one run.
        stream: handle of the CUDA stream to work on; None lets ONNX Runtime create one.

    Raises:
        MissingExtraError, UnknownNameError, EngineError: see `open_engine`.

    """
    ort = _library()
    _check_available(ort, provider)
    missing = _load_cuda(ort, provider)
    session = _session(ort, graph, provider, threads, stream)
    actual = _short_name(session.get_providers()[0])
    if actual != provider:
        missing = missing or ("the NVIDIA driver does not answer" if gpu_name() == NO_GPU else "")
        raise EngineError(
            f"provider '{provider}' was requested, but onnxruntime {ort.__version__} fell back to '{actual}'"
            f"{missing and ': ' + missing}; {_REMEDIES[provider]}"
        )
    return session


def open_setting(graph: Path, setting: Setting, options: CompileOptions) -> Engine:
    """Open `graph` with `setting`, as `tune_graph` measures it."""
    return _open_graph(graph, options.provider or "cpu", setting)


def tune_graph(
    graph: Path, images: np.ndarray, options: CompileOptions, progress: Progress
) -> tuple[Trial, tuple[Trial, ...]]:
    """Return the fastest batch, threads and streams measured on images, uint8 (n, H, W, 3), and all measurements."""
    if options.provider in {None, "cpu"}:
        settings, batches = cpu_choices(options)
    else:  # with a GPU the number of threads has almost no effect
        settings = [Setting(options.threads or available_cpus())]
        batches = [options.batch.best] if options.batch else [*_GPU_BATCHES]
    return tune(lambda setting: open_setting(graph, setting, options), settings, images, progress, batches=batches)


def check_options(options: CompileOptions, precision: str) -> None:
    """Raise an error if this machine lacks the provider or precision; see `mimruntime.engines.base.EngineModule`."""
    provider = options.provider or "cpu"
    _check_available(_library(), provider)
    if options.hint and provider != "cpu":
        raise OptionError(f"--hint {options.hint} is for a CPU; with --provider {provider} give --batch")
    check_hint(options)
    if (provider, precision) == ("cpu", "bf16"):
        raise EngineError(f"onnxruntime {_NO_BF16}")


def compile_engine(artifact: Artifact, folder: Path, options: CompileOptions, progress: Progress) -> EngineRecord:  # noqa: ARG001 - every engine has it
    """Measure the best batch, threads and streams. Write nothing to `folder`: the graph itself is run."""
    best, trials = tune_graph(artifact.graph, load_reference(artifact)[0], options, progress)
    provider = options.provider or "cpu"
    return EngineRecord(
        engine=NAME,
        version=library_version(),
        precision=artifact.manifest.graph.precision,
        graph_sha256=artifact.graph_sha256,
        provider=provider,
        hardware=_hardware(provider),
        tuned=best,
        trials=trials,
    )


class OnnxRuntimeEngine(Engine):
    """A session of ONNX Runtime; a batch is split among its streams, which run at once and share the weights."""

    def __init__(self, session: Any, *, provider: str, version: str, setting: Setting) -> None:
        self.name = NAME
        self.provider = provider
        self.version = version
        self.threads, self.streams = setting.threads, setting.streams
        self._pool = ThreadPoolExecutor(self.streams, "mimruntime-stream")
        self.outputs = tuple(port.name for port in session.get_outputs())
        self.reads_device = provider == "cuda"
        self.parallel_runs = 1 if provider == "cpu" else 2  # one batch is copied while another is computed
        self._input = session.get_inputs()[0].name
        self.pixel_shape = tuple(session.get_inputs()[0].shape[1:])
        self._session = session

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """See base class."""

        def split(session: Any) -> list[np.ndarray]:
            parts = [part for part in np.array_split(pixels, self.streams) if len(part)]
            arrays = self._pool.map(lambda part: session.run(self.outputs, {self._input: part}), parts)
            return [np.concatenate(each) for each in zip(*arrays, strict=True)]

        def whole(session: Any) -> list[np.ndarray]:
            arrays: list[np.ndarray] = session.run(self.outputs, {self._input: pixels})
            return arrays

        return self._guarded(len(pixels), whole if self.streams == 1 else split)

    def run_on_device(self, address: int, count: int) -> dict[str, np.ndarray]:
        """See base class."""
        self.check_process()
        if not self.reads_device:
            return super().run_on_device(address, count)

        def bound(session: Any) -> list[np.ndarray]:
            binding = session.io_binding()
            binding.bind_input(self._input, "cuda", 0, np.uint8, (count, *self.pixel_shape), address)
            for output in self.outputs:
                binding.bind_output(output)  # in the host's memory
            session.run_with_iobinding(binding)
            arrays: list[np.ndarray] = binding.copy_outputs_to_cpu()
            return arrays

        return self._guarded(count, bound)

    def _guarded(self, count: int, run: Callable[[Any], list[np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the arrays of a run by name; any failure is an EngineError."""
        if self._session is None:
            raise EngineError("this engine is closed")
        try:
            arrays = run(self._session)
        except Exception as error:  # one type per status code, none of them public
            raise EngineError(f"onnxruntime failed on a batch of {count}: {_first_line(error)}") from error
        return dict(zip(self.outputs, arrays, strict=True))

    def _close(self) -> None:
        """See base class."""
        self._pool.shutdown()
        self._session = None


def _open_graph(graph: Path, provider: str, setting: Setting) -> OnnxRuntimeEngine:
    # All streams share the session's threads, and each brings its own, which is counted as one of them.
    session = open_session(graph, provider=provider, threads=setting.threads - setting.streams + 1)
    return OnnxRuntimeEngine(session, provider=provider, version=library_version(), setting=setting)


def _hardware(provider: str) -> str:
    return describe_cpu() if provider == "cpu" else f"{describe_cpu()}, {gpu_name()}"


def _library() -> Any:
    os.environ.setdefault(_NO_TELEMETRY, "1")
    try:
        import onnxruntime  # noqa: PLC0415 - the one place that needs it
    except ImportError as error:
        raise MissingExtraError(f"the engine '{NAME}'", extra="cpu") from error
    onnxruntime.set_default_logger_severity(_LOG_ERRORS)
    return onnxruntime


def _check_available(ort: Any, asked: str) -> None:
    """Raise an error if the provider is unknown or not in this build of ONNX Runtime; it may still fail to load."""
    if asked not in PROVIDERS:
        raise UnknownNameError(f"provider of the engine '{NAME}'", asked, PROVIDERS)
    available = [name for name, full in PROVIDERS.items() if full in ort.get_available_providers()]
    if asked in available:
        return
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if is_installed(name)]
    remedy = "pip install 'mimexport[cpu]'" if asked == "cpu" else "pip install 'mimexport[gpu]'"
    if installed:
        remedy = f"pip uninstall {' '.join(installed)}; {remedy} (the extras cpu and gpu exclude each other)"
    raise EngineError(
        f"provider '{asked}' is not part of {' + '.join(installed) or 'onnxruntime'} {ort.__version__},"
        f" which has {', '.join(available)}; run: {remedy}"
    )


def _load_cuda(ort: Any, asked: str) -> str:
    """Load NVIDIA's libraries from pip packages, which ONNX Runtime does not search. Return what is missing, or "".

    Missing libraries are no error here: the session may find them elsewhere.
    """
    if asked == "cpu":
        return ""
    if asked == "tensorrt":
        with contextlib.suppress(ImportError):  # importing it loads its libraries
            importlib.import_module("tensorrt")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints the names of missing libraries
        ort.preload_dlls()
    return said.getvalue().strip().split("\n")[0]


def _session(ort: Any, graph: Path, asked: str, threads: int, stream: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # No spinning while waiting: images are decoded on the same CPUs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not graph.is_file():
        raise EngineError(f"{graph}: no such graph")
    # If a provider fails, ONNX Runtime prints a banner and falls back; hide it, because the caller gets a one-line error.
    quiet = contextlib.nullcontext() if asked == "cpu" else contextlib.redirect_stdout(io.StringIO())
    ort.set_default_logger_severity(_LOG_ERRORS if asked == "cpu" else _LOG_FATAL)
    try:
        with quiet:
            return ort.InferenceSession(
                str(graph), options, providers=_wanted(asked, stream), disabled_optimizers=LEFT_OUT.get(asked)
            )
    except Exception as error:  # one type per status code, none of them public
        if "bfloat16" in str(error):
            raise EngineError(f"onnxruntime {ort.__version__} {_NO_BF16}") from error
        hint = f"; it {_NO_BF16}" if "NOT_IMPLEMENTED" in str(error) else ""
        raise EngineError(f"onnxruntime {ort.__version__} cannot load {graph}: {_first_line(error)}{hint}") from error
    finally:
        ort.set_default_logger_severity(_LOG_ERRORS)


def _wanted(asked: str, stream: int | None) -> list[tuple[str, dict[str, str]]]:
    """Return the requested provider, then those for nodes it does not support (mostly shape arithmetic)."""
    chain = {"cpu": ("cpu",), "cuda": ("cuda", "cpu"), "tensorrt": ("tensorrt", "cuda", "cpu")}[asked]
    cuda = _CUDA_OPTIONS if stream is None else {**_CUDA_OPTIONS, "user_compute_stream": str(stream)}
    return [(PROVIDERS[name], cuda if name == "cuda" else {}) for name in chain]


def _short_name(full: str) -> str:
    return next((name for name, known in PROVIDERS.items() if known == full), full)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
