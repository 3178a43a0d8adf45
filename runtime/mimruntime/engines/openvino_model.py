"""A graph or a compiled blob as OpenVINO reads it: rewritten where it must be, in the precision that is asked for."""

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
"""Layers, as OpenVINO names them once compiled, that multiply matrices."""
_PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "u8": "int8", "i8": "int8"}
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def library_version() -> str:
    """Return the version of OpenVINO, without the digest of its build."""
    return str(library().__version__).partition("-")[0]


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


def compile_graph(graph: Path, setting: Setting, precision: str | None) -> Any:
    """Return the graph at `graph`, rewritten and compiled for this CPU; None is what `_best_precision` gives.

    Raises:
        EngineError: it cannot be loaded, or this CPU does not compute in that precision.

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
    """Return the compiled model that `export_model` wrote to `path`, and the memory it lives in.

    Raises:
        EngineError: it cannot be loaded.

    """
    # Mapped, not read; copy-on-write, since the library asks for memory it may write to.
    blob = np.memmap(path, dtype=np.uint8, mode="c")
    try:
        memory = library().Tensor(blob, shared_memory=True)
        return process_core().import_model(memory, "CPU", _config(setting, precision)), (memory, blob)
    except RuntimeError as error:
        raise EngineError(f"openvino {library_version()} cannot load {path.parent}: {one_line(error)}") from error


def running_precision(model: Any) -> str:
    """Return the narrowest precision in which this compiled model multiplies matrices, from the layers that will run."""
    infos = [op.get_rt_info() for op in model.get_runtime_model().get_ops()]
    types = {info["runtimePrecision"].astype(str) for info in infos if info["layerType"].astype(str) in _PRODUCTS}
    found = {_PRECISIONS.get(kind, kind) for kind in types}
    return next((name for name in ("int8", "fp16", "bf16") if name in found), "fp32")


def check_precision(core: Any, wanted: str) -> None:
    """Refuse a precision that this CPU does not multiply."""
    if wanted != "fp32" and wanted not in _capabilities(core):
        raise EngineError(
            f"openvino cannot compute in {wanted} on this CPU ({describe_cpu()}): bf16 needs avx512_bf16 or amx_bf16;"
            " leave --precision out, or run on a CPU that has it"
        )


def library() -> Any:
    """Return the module `openvino`; MissingExtraError where it is not installed."""
    try:
        import openvino  # noqa: PLC0415 - the one place that needs it
    except ImportError as error:
        raise MissingExtraError(f"the engine '{NAME}'", extra="openvino") from error
    return openvino


def one_line(error: Exception) -> str:
    """Return what an error of the library says first, without where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return (lines[0] if lines else type(error).__name__)[:300]


@functools.cache
def _first_core() -> tuple[Any, int]:
    """Return a core and the process that made it."""
    core = library().Core()
    stays_with_process(core)
    return core, os.getpid()


def _widen(model: Any) -> None:
    """Make a graph in bf16 one in fp32, weights rounded as they are.

    With AVX-512 that lacks bf16, OpenVINO 2026.4 would compute in an emulation of it, at a tenth of the speed of fp32;
    with AVX2 alone it widens such a graph by itself.
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
