"""OpenVINO on the CPU, in the precision that was asked for or not at all."""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from mimruntime.artifact import Artifact
from mimruntime.cpus import available_cpus, describe_cpu, is_plain
from mimruntime.engines.base import EMBEDDING, SELECTION, Engine, Progress
from mimruntime.engines.compiled import Compiled
from mimruntime.engines.forks import refusal, stays_with_process
from mimruntime.engines.options import CompileOptions
from mimruntime.engines.record import EngineRecord, Trial
from mimruntime.engines.tuning import Setting, stream_settings, tune
from mimruntime.errors import EngineError, MissingExtraError, OptionError, UnknownNameError
from mimruntime.reference import load_reference

NAME = "openvino"
NEEDS_GPU = False
CPU_PRECISIONS = frozenset({"fp32", "fp16", "bf16", "int8"})
OPTIONS = frozenset({"provider", "precision", "hint", "batch", "threads"})
PROVIDERS = ("cpu",)

_BLOB = "model.blob"
_PRODUCTS = {"FullyConnected", "MatMul", "Convolution"}
"""Layers, as OpenVINO names them once compiled, that multiply matrices."""
_PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "u8": "int8", "i8": "int8"}
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def library_version() -> str:
    """Return the version of OpenVINO, without the digest of its build."""
    return str(_library().__version__).partition("-")[0]


def other_hardware(record: EngineRecord) -> str | None:
    """Return why a record was compiled for another machine, or None."""
    here = describe_cpu()
    return None if record.hardware == here else f"is for {record.hardware}; this machine has {here}"


def open_engine(graph: Path, *, provider: str | None, threads: int | None, compiled: Compiled | None = None) -> Engine:
    """Open `graph`, or what was compiled from it; see `mimruntime.engines.open_engine`.

    Without a compilation one stream runs on all threads, in the graph's precision where the CPU multiplies it, else in
    fp32.
    """
    _check_provider(provider)
    tuned = compiled.record.tuned if compiled else None
    if compiled is None or tuned is None or threads not in {None, tuned.threads}:
        return _open_graph(graph, Setting(threads or available_cpus()), _asked(compiled))
    setting = Setting(tuned.threads, tuned.streams)
    model, memory = _import(compiled, setting)
    engine = OpenVinoEngine(model, setting, memory)
    if engine.precision != compiled.record.precision:
        raise EngineError(
            f"{compiled.folder} was compiled in {compiled.record.precision}, it runs in {engine.precision}"
        )
    engine.compiled, engine.best_batch = compiled.folder.name, tuned.batch
    return engine


def open_setting(graph: Path, setting: Setting, options: CompileOptions) -> OpenVinoEngine:
    """Open `graph` as `tune_graph` measures it."""
    return _open_graph(graph, setting, options.precision)


def tune_graph(
    graph: Path, images: np.ndarray, options: CompileOptions, progress: Progress
) -> tuple[Trial, tuple[Trial, ...]]:
    """Return the best batch, threads and streams by measurement on images, uint8 (n, H, W, 3), and all measurements."""
    batches = [options.batch.best] if options.batch else []
    settings = stream_settings(available_cpus())
    if options.hint == "latency":
        settings, batches = [Setting(options.threads or available_cpus())], [1]
    elif options.threads:
        settings = [one for one in stream_settings(options.threads) if one.threads == options.threads]
    return tune(lambda setting: open_setting(graph, setting, options), settings, images, progress, batches=batches)


def check_options(options: CompileOptions, precision: str) -> None:  # noqa: ARG001 - every engine has it
    """Refuse a provider or precision that is not here; see `mimruntime.engines.base.EngineModule`."""
    _check_provider(options.provider)
    if options.hint == "latency" and options.batch is not None and options.batch.best != 1:
        raise OptionError(
            f"--hint latency tunes for one image at a time, --batch asks for {options.batch.best}; give one of them"
        )
    _check_precision(process_core(), options.precision or "fp32")


def compile_engine(artifact: Artifact, folder: Path, options: CompileOptions, progress: Progress) -> EngineRecord:
    """Choose batch, threads and streams by measurement, and write the model as OpenVINO has compiled it."""
    best, trials = tune_graph(artifact.graph, load_reference(artifact)[0], options, progress)
    progress("writing", 0, 1)
    with open_setting(artifact.graph, Setting(best.threads, best.streams), options) as engine:
        engine.export(folder / _BLOB)
        precision = engine.precision
    progress("writing", 1, 1)
    return EngineRecord(
        engine=NAME,
        version=library_version(),
        precision=precision,
        graph_sha256=artifact.graph_sha256,
        provider="cpu",
        hardware=describe_cpu(),
        tuned=best,
        trials=trials,
    )


class OpenVinoEngine(Engine):
    """A compiled model with one request for every stream; a batch is split among them."""

    precision: str

    def __init__(self, model: Any, setting: Setting, memory: Any = None) -> None:
        self.name = NAME
        self.provider = "cpu"
        self.version = library_version()
        names = (port.get_any_name() for port in model.outputs if port.get_names())
        self.outputs = tuple(name for name in names if name in {EMBEDDING, SELECTION})
        self.precision = _running_precision(model)
        self.pixel_shape = tuple(int(str(edge)) for edge in list(model.inputs[0].get_partial_shape())[1:])
        self.threads, self.streams = setting.threads, setting.streams
        self._memory = memory  # what the model's weights lie in; to be freed after it
        self._model = model
        self._requests = [model.create_infer_request() for _ in range(setting.streams)]

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """See base class."""
        if self._model is None:
            raise EngineError("this engine is closed")
        parts = [part for part in np.array_split(pixels, len(self._requests)) if len(part)]
        busy = self._requests[: len(parts)]
        try:
            for request, part in zip(busy, parts, strict=True):
                request.start_async({0: np.ascontiguousarray(part)}, share_inputs=True)
            for request in busy:
                request.wait()
        except RuntimeError as error:
            raise EngineError(f"openvino failed on a batch of {len(pixels)}: {_one_line(error)}") from error
        # Copied: the next run writes into the same tensors.
        return {name: np.concatenate([request.get_tensor(name).data for request in busy]) for name in self.outputs}

    def export(self, path: Path) -> None:
        """Write the model as it was compiled for this CPU."""
        stream = io.BytesIO()
        self._model.export_model(stream)
        path.write_bytes(stream.getbuffer())

    def _close(self) -> None:
        """See base class."""
        self._requests = []
        self._model = None
        self._memory = None


def _library() -> Any:
    try:
        import openvino  # noqa: PLC0415 - the one place that needs it
    except ImportError as error:
        raise MissingExtraError(f"the engine '{NAME}'", extra="openvino") from error
    return openvino


def process_core() -> Any:
    """Return the one `openvino.Core` of this process, which is never let go.

    The CPU plugin of OpenVINO 2026.4 gives the thread that loads it a stack for signal handlers and frees it with the last
    `Core`. Where that happens in another thread, the kernel still has the old address, and the next signal that has a
    handler, such as Ctrl-C, ends the process with a segmentation fault.

    Raises:
        EngineError: this process was forked off one that had a core, whose threads are not here.

    """
    core, process = _first_core()
    if process != os.getpid():
        raise EngineError(refusal(NAME))
    return core


@functools.cache
def _first_core() -> tuple[Any, int]:
    """Return a core and the process that made it."""
    core = _library().Core()
    stays_with_process(core)
    return core, os.getpid()


def _open_graph(graph: Path, setting: Setting, precision: str | None) -> OpenVinoEngine:
    core = process_core()
    if not graph.is_file():
        raise EngineError(f"{graph}: no such graph")
    try:
        model = core.read_model(str(graph))
        wanted = precision or _best_precision(core, model)
        _check_precision(core, wanted)
        if "bf16" not in _capabilities(core):
            _widen(model)
        _keep_reductions_apart(model)
        compiled = core.compile_model(model, "CPU", _config(setting, wanted))
    except RuntimeError as error:
        raise EngineError(f"openvino {library_version()} cannot load {graph}: {_one_line(error)}") from error
    engine = OpenVinoEngine(compiled, setting)
    # A hint the CPU cannot follow is dropped without a word, so what runs is asked for. Integers come from the graph.
    if precision is not None and engine.precision not in {precision, "int8"}:
        raise EngineError(f"openvino was asked for {precision} and computes in {engine.precision}")
    return engine


def _widen(model: Any) -> None:
    """Make a graph in bf16 one in fp32, weights rounded as they are.

    With AVX-512 that lacks bf16, OpenVINO 2026.4 would compute in an emulation of it, at a tenth of the speed of fp32;
    with AVX2 alone it widens such a graph by itself.
    """
    library = _library()
    narrow = library.Type.bf16
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Constant" and op.get_element_type() == narrow:
            wide = library.op.Constant(op.get_data(dtype=np.float32))
            for reader in op.output(0).get_target_inputs():
                reader.replace_source_output(wide.output(0))
        elif op.get_type_name() == "Convert" and op.get_output_element_type(0) == narrow:
            op.set_attribute("destination_type", "f32")
    model.validate_nodes_and_infer_types()


def _keep_reductions_apart(model: Any) -> None:
    """Make every reduction an output as well, so that nothing is fused into it.

    OpenVINO 2026.4 fuses a product by a constant of one number per row into the reduction before it, and then gives
    wrong numbers for every batch but 1 (seen on AVX2 in the score of `topk`).
    """
    for op in model.get_ops():
        if op.get_type_name().startswith("Reduce"):
            model.add_outputs(op.output(0))


def _config(setting: Setting, precision: str) -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": setting.threads,
        "NUM_STREAMS": setting.streams,
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        # Images are decoded on the same CPUs.
        "ENABLE_CPU_PINNING": False,
    }


def _best_precision(core: Any, model: Any) -> str:
    """Return what the graph's products are typed in where this CPU multiplies it, else fp32: never narrower, unasked.

    Without a hint OpenVINO 2026.4 computes a graph in fp32 in bf16 on every CPU that multiplies it.
    """
    types = {op.get_input_element_type(1).get_type_name() for op in model.get_ops() if op.get_type_name() == "MatMul"}
    narrow = next((_PRECISIONS[name] for name in ("f16", "bf16") if name in types), "fp32")
    return narrow if narrow in _capabilities(core) else "fp32"


def _capabilities(core: Any) -> set[str]:
    found = {name.lower() for name in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")}
    return found - {"bf16", "fp16"} if is_plain() else found


def _check_provider(provider: str | None) -> None:
    if provider not in {None, *PROVIDERS}:
        raise UnknownNameError(f"provider of the engine '{NAME}'", str(provider), PROVIDERS)


def _check_precision(core: Any, wanted: str) -> None:
    if wanted != "fp32" and wanted not in _capabilities(core):
        raise EngineError(
            f"openvino cannot compute in {wanted} on this CPU ({describe_cpu()}): bf16 needs avx512_bf16 or amx_bf16;"
            " leave --precision out, or run on a CPU that has it"
        )


def _running_precision(model: Any) -> str:
    """Return the narrowest precision in which this compiled model multiplies matrices, from the layers that will run."""
    infos = [op.get_rt_info() for op in model.get_runtime_model().get_ops()]
    types = {info["runtimePrecision"].astype(str) for info in infos if info["layerType"].astype(str) in _PRODUCTS}
    found = {_PRECISIONS.get(kind, kind) for kind in types}
    return next((name for name in ("int8", "fp16", "bf16") if name in found), "fp32")


def _asked(compiled: Compiled | None) -> str | None:
    """Return the precision that the compilation was asked for, or None."""
    return compiled.record.options.get("precision") if compiled else None


def _import(compiled: Compiled, setting: Setting) -> tuple[Any, Any]:
    """Return the compiled model and the memory it lives in."""
    library = _library()
    # Mapped, not read; copy-on-write, since the library asks for memory it may write to.
    blob = np.memmap(compiled.folder / _BLOB, dtype=np.uint8, mode="c")
    # The precision is chosen again at the import. Integers come from the graph; what is beside them is in fp32 unasked.
    precision = _asked(compiled) or ("fp32" if compiled.record.precision == "int8" else compiled.record.precision)
    try:
        memory = library.Tensor(blob, shared_memory=True)
        return process_core().import_model(memory, "CPU", _config(setting, precision)), (memory, blob)
    except RuntimeError as error:
        raise EngineError(f"openvino {library_version()} cannot load {compiled.folder}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return (lines[0] if lines else type(error).__name__)[:300]
