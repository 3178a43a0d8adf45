"""The engine `openvino` on the CPU; it never falls back to another precision."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from mimruntime.artifact import Artifact
from mimruntime.cpus import available_cpus, describe_cpu
from mimruntime.engines import openvino_model
from mimruntime.engines.base import EMBEDDING, KEPT, SELECTION, Engine, Progress, Setting
from mimruntime.engines.openvino_model import (
    check_precision,
    compile_graph,
    import_blob,
    one_line,
    process_core,
    running_precision,
)
from mimruntime.engines.options import CompileOptions
from mimruntime.engines.record import CompiledEngine, EngineRecord, Trial
from mimruntime.engines.tuning import check_hint, cpu_choices, tune
from mimruntime.errors import EngineError, UnknownNameError
from mimruntime.reference import load_reference

NAME = openvino_model.NAME
NEEDS_GPU = False
CPU_PRECISIONS = frozenset({"fp32", "fp16", "bf16", "int8"})
OPTIONS = frozenset({"provider", "precision", "hint", "batch", "threads"})
PROVIDERS = ("cpu",)

library_version = openvino_model.library_version
_BLOB = "model.blob"


def other_hardware(record: EngineRecord) -> str | None:
    """Return why a record was compiled for another machine, or None."""
    here = describe_cpu()
    return None if record.hardware == here else f"is for {record.hardware}; this machine has {here}"


def open_engine(
    graph: Path, *, provider: str | None, threads: int | None, compiled: CompiledEngine | None = None
) -> Engine:
    """Open `graph` or the model compiled from it; see `mimruntime.engines.open_engine`.

    Without a compiled model, one stream uses all threads. It computes in the graph's precision if the CPU supports it, else
    in fp32.
    """
    _check_provider(provider)
    tuned = compiled.record.tuned if compiled else None
    if compiled is None or tuned is None or threads not in {None, tuned.threads}:
        return _open_graph(graph, Setting(threads or available_cpus()), _asked(compiled))
    setting = Setting(tuned.threads, tuned.streams)
    # The precision must be given again at import. int8 layers come from the graph; the others run in fp32 by default.
    precision = _asked(compiled) or ("fp32" if compiled.record.precision == "int8" else compiled.record.precision)
    model, memory = import_blob(compiled.folder / _BLOB, setting, precision)
    engine = OpenVinoEngine(model, setting, memory)
    if engine.precision != compiled.record.precision:
        raise EngineError(
            f"{compiled.folder} was compiled in {compiled.record.precision}, but runs in {engine.precision}"
        )
    engine.compiled, engine.best_batch = compiled.folder.name, tuned.batch
    return engine


def open_setting(graph: Path, setting: Setting, options: CompileOptions) -> OpenVinoEngine:
    """Open `graph` with `setting`, as `tune_graph` measures it."""
    return _open_graph(graph, setting, options.precision)


def tune_graph(
    graph: Path, images: np.ndarray, options: CompileOptions, progress: Progress
) -> tuple[Trial, tuple[Trial, ...]]:
    """Return the fastest batch, threads and streams measured on images, uint8 (n, H, W, 3), and all measurements."""
    settings, batches = cpu_choices(options)
    return tune(lambda setting: open_setting(graph, setting, options), settings, images, progress, batches=batches)


def check_options(options: CompileOptions, precision: str) -> None:  # noqa: ARG001 - every engine has it
    """Raise an error if this machine lacks the provider or precision; see `mimruntime.engines.base.EngineModule`."""
    _check_provider(options.provider)
    check_hint(options)
    check_precision(process_core(), options.precision or "fp32")


def compile_engine(artifact: Artifact, folder: Path, options: CompileOptions, progress: Progress) -> EngineRecord:
    """Measure the best batch, threads and streams, and write the model that OpenVINO compiled."""
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
    """A compiled model with one inference request per stream; a batch is split among them."""

    precision: str

    def __init__(self, model: Any, setting: Setting, memory: Any = None) -> None:
        self.name = NAME
        self.provider = "cpu"
        self.version = library_version()
        names = (port.get_any_name() for port in model.outputs if port.get_names())
        self.outputs = tuple(name for name in names if name in {EMBEDDING, SELECTION, KEPT})
        self.precision = running_precision(model)
        self.pixel_shape = tuple(int(str(edge)) for edge in list(model.inputs[0].get_partial_shape())[1:])
        self.threads, self.streams = setting.threads, setting.streams
        self._memory = memory  # memory of the model's weights; must be freed after the model
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
            raise EngineError(f"openvino failed on a batch of {len(pixels)}: {one_line(error)}") from error
        # Copy, because the next run writes into the same tensors.
        return {name: np.concatenate([request.get_tensor(name).data for request in busy]) for name in self.outputs}

    def export(self, path: Path) -> None:
        """Write the model compiled for this CPU to `path`."""
        stream = io.BytesIO()
        self._model.export_model(stream)
        path.write_bytes(stream.getbuffer())

    def _close(self) -> None:
        """See base class."""
        self._requests = []
        self._model = None
        self._memory = None


def _open_graph(graph: Path, setting: Setting, precision: str | None) -> OpenVinoEngine:
    engine = OpenVinoEngine(compile_graph(graph, setting, precision), setting)
    # OpenVINO silently ignores an unsupported precision hint, so check the running precision. int8 comes from the graph.
    if precision is not None and engine.precision not in {precision, "int8"}:
        raise EngineError(
            f"openvino computes in {engine.precision} although {precision} was requested; leave --precision out"
        )
    return engine


def _check_provider(provider: str | None) -> None:
    if provider not in {None, *PROVIDERS}:
        raise UnknownNameError(f"provider of the engine '{NAME}'", str(provider), PROVIDERS)


def _asked(compiled: CompiledEngine | None) -> str | None:
    """Return the `--precision` of the compilation, or None."""
    return compiled.record.options.get("precision") if compiled else None
