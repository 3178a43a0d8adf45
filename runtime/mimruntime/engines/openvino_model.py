"""Load a graph or a compiled blob with OpenVINO in the requested precision; work around faults of the library."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from mimruntime.cpus import describe_cpu, is_plain
from mimruntime.engines.base import Setting
from mimruntime.engines.forks import refusal, stays_with_process
from mimruntime.errors import EngineError, MissingExtraError

NAME = "openvino"

_PRODUCTS = {"FullyConnected", "MatMul", "Convolution"}
"""Layer types of compiled models that multiply matrices."""
_PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "u8": "int8", "i8": "int8"}
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def library_version() -> str:
    """Return the version of OpenVINO without its build number."""
    return str(library().__version__).partition("-")[0]


def process_core() -> Any:
    """Return the only `openvino.Core` of this process; it is never deleted.

    The CPU plugin of OpenVINO 2026.4 installs a signal stack in the thread that loads it, and frees the stack with the last
    `Core`. If another thread deletes the `Core`, the kernel keeps the freed address. Then the next handled signal, such as
    Ctrl-C, crashes the process.

    Raises:
        EngineError: the process was forked after the core was created; its threads exist only in the parent.

    """
    core, process = _first_core()
    if process != os.getpid():
        raise EngineError(refusal(NAME))
    return core


def compile_graph(graph: Path, setting: Setting, precision: str | None) -> Any:
    """Return the model of the ONNX file `graph`, compiled for this CPU; precision None takes `_best_precision`.

    Raises:
        EngineError: the graph cannot be loaded, or this CPU does not support the precision.

    """
    core = process_core()
    if not graph.is_file():
        raise EngineError(f"{graph}: no such graph")
    try:
        model = core.read_model(str(graph))
        wanted = precision or _best_precision(core, model)
        check_precision(core, wanted)
        if "bf16" not in _capabilities(core):
            _widen(model)
        _keep_reductions_apart(model)
        return core.compile_model(model, "CPU", _config(setting, wanted))
    except RuntimeError as error:
        raise EngineError(f"openvino {library_version()} cannot load {graph}: {one_line(error)}") from error


def import_blob(path: Path, setting: Setting, precision: str) -> tuple[Any, Any]:
    """Return the compiled model that `export_model` wrote to `path`, and the memory that must outlive it.

    Raises:
        EngineError: it cannot be loaded.

    """
    # Map the file instead of reading it; copy-on-write, because the library requires writable memory.
    blob = np.memmap(path, dtype=np.uint8, mode="c")
    try:
        memory = library().Tensor(blob, shared_memory=True)
        return process_core().import_model(memory, "CPU", _config(setting, precision)), (memory, blob)
    except RuntimeError as error:
        raise EngineError(f"openvino {library_version()} cannot load {path.parent}: {one_line(error)}") from error


def running_precision(model: Any) -> str:
    """Return the narrowest precision of the compiled model's matrix products, as reported by its layers."""
    infos = [op.get_rt_info() for op in model.get_runtime_model().get_ops()]
    types = {info["runtimePrecision"].astype(str) for info in infos if info["layerType"].astype(str) in _PRODUCTS}
    found = {_PRECISIONS.get(kind, kind) for kind in types}
    return next((name for name in ("int8", "fp16", "bf16") if name in found), "fp32")


def check_precision(core: Any, wanted: str) -> None:
    """Raise EngineError if this CPU does not support a precision."""
    if wanted != "fp32" and wanted not in _capabilities(core):
        raise EngineError(
            f"openvino cannot compute in {wanted} on this CPU ({describe_cpu()}): bf16 needs avx512_bf16 or amx_bf16;"
            " leave --precision out, or run on a CPU that has it"
        )


def library() -> Any:
    """Return the module `openvino`; raise MissingExtraError if it is not installed."""
    try:
        import openvino  # noqa: PLC0415 - the one place that needs it
    except ImportError as error:
        raise MissingExtraError(f"the engine '{NAME}'", extra="openvino") from error
    return openvino


def one_line(error: Exception) -> str:
    """Return the first line of an OpenVINO error without source locations, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return (lines[0] if lines else type(error).__name__)[:300]


@functools.cache
def _first_core() -> tuple[Any, int]:
    """Return a core and the id of the process that created it."""
    core = library().Core()
    stays_with_process(core)
    return core, os.getpid()


def _widen(model: Any) -> None:
    """Convert a bf16 graph to fp32; the weights keep their rounded values.

    On AVX-512 without bf16, OpenVINO 2026.4 emulates bf16 at a tenth of the speed of fp32. On AVX2 it converts the graph
    itself.
    """
    openvino = library()
    narrow = openvino.Type.bf16
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Constant" and op.get_element_type() == narrow:
            wide = openvino.op.Constant(op.get_data(dtype=np.float32))
            for reader in op.output(0).get_target_inputs():
                reader.replace_source_output(wide.output(0))
        elif op.get_type_name() == "Convert" and op.get_output_element_type(0) == narrow:
            op.set_attribute("destination_type", "f32")
    model.validate_nodes_and_infer_types()


def _keep_reductions_apart(model: Any) -> None:
    """Make every reduction an output, so that OpenVINO fuses nothing into it.

    OpenVINO 2026.4 fuses a product with a constant of one number per row into the reduction before it. The result is then
    wrong for every batch but 1 (seen on AVX2 in the score of `topk`).
    """
    for op in model.get_ops():
        if op.get_type_name().startswith("Reduce"):
            model.add_outputs(op.output(0))


def _config(setting: Setting, precision: str) -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": setting.threads,
        "NUM_STREAMS": setting.streams,
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        # No pinning, because images are decoded on the same CPUs.
        "ENABLE_CPU_PINNING": False,
    }


def _best_precision(core: Any, model: Any) -> str:
    """Return the precision of the graph's products if this CPU supports it, else fp32.

    Without a precision hint, OpenVINO 2026.4 computes fp32 graphs in bf16 on CPUs that support it.
    """
    types = {op.get_input_element_type(1).get_type_name() for op in model.get_ops() if op.get_type_name() == "MatMul"}
    narrow = next((_PRECISIONS[name] for name in ("f16", "bf16") if name in types), "fp32")
    return narrow if narrow in _capabilities(core) else "fp32"


def _capabilities(core: Any) -> set[str]:
    found = {name.lower() for name in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")}
    return found - {"bf16", "fp16"} if is_plain() else found
