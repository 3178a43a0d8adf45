"""Export an EmbeddingModel to an ONNX file, and check the rules that every engine needs."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import torch

from mimexport.embedding_model import EmbeddingModel
from mimexport.errors import GraphError
from mimexport.fusions import fuse
from mimruntime.manifest import Port

OPSET = 18
FILE = "model.onnx"
_INPUT = "pixels"
_SINGLE_FILE_LIMIT = 2**31 - 2**24
"""Largest total size of the weights in bytes; protobuf is limited to 2 GiB, and the graph itself needs some of it."""

_FORBIDDEN = {
    "Resize": "position tables are resampled before the export",
    "Attention": "TensorRT has no float32 kernel for it",
    **dict.fromkeys(("If", "Loop", "Scan"), "control flow must not depend on data"),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Dropout"),
        "an embedding must not be random",
    ),
}


def export_graph(model: EmbeddingModel, folder: Path, size: int) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Write `model` to `folder/model.onnx`; weights above 2 GiB go to a separate file.

    Args:
        model: in evaluation mode.
        folder: exists and is writable.
        size: edge of the square input, px.

    Returns:
        The graph's inputs and outputs.

    Raises:
        GraphError: the exporter failed, or the graph breaks a rule.

    """
    # Two images, because tracing would fix a dimension of size 1.
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    path = folder / FILE
    try:
        with torch.no_grad(), quiet_exporter():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[_INPUT],
                output_names=model.outputs,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                optimize=True,
                verbose=False,
            )
            if program is None:
                raise GraphError("the ONNX exporter returned no program")
            fuse(program.model)
            tensors = [value.const_value for value in program.model.graph.initializers.values()]
            stored = sum(tensor.nbytes for tensor in tensors if tensor is not None)
            program.save(path, external_data=stored > _SINGLE_FILE_LIMIT)
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outer messages are advice for developers of the exporter
            cause = cause.__cause__
        raise GraphError(f"the ONNX exporter failed: {(str(cause) or type(cause).__name__).splitlines()[0]}") from error
    return check_graph(path, model.outputs)


def check_graph(path: Path, outputs: Sequence[str]) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Check the graph at `path` against the rules, and return its inputs and outputs.

    Raises:
        GraphError: the graph has a forbidden operator, a fixed batch size, or unexpected inputs, outputs or opset.

    """
    graph = onnx.load(path, load_external_data=False)
    operators = {node.op_type for node in graph.graph.node}
    for operator in sorted(operators & _FORBIDDEN.keys()):
        raise GraphError(f"the graph contains {operator}, which is not allowed: {_FORBIDDEN[operator]}")
    opset = next(entry.version for entry in graph.opset_import if entry.domain == "")
    if opset != OPSET:
        raise GraphError(f"the graph has opset {opset}, expected {OPSET}")
    ports_in, ports_out = (tuple(map(_port, side)) for side in (graph.graph.input, graph.graph.output))
    if [port.name for port in ports_in] != [_INPUT] or [port.name for port in ports_out] != list(outputs):
        names = [port.name for port in ports_in + ports_out]
        raise GraphError(f"the graph has the inputs and outputs {names}, expected {[_INPUT, *outputs]}")
    for port in ports_in + ports_out:
        if not isinstance(port.shape[0], str) or not all(isinstance(edge, int) for edge in port.shape[1:]):
            raise GraphError(
                f"{port.name} has shape {port.shape}, expected a dynamic batch and otherwise fixed dimensions"
            )
    return ports_in, ports_out


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    shape = tuple(edge.dim_param or edge.dim_value for edge in tensor.shape.dim)
    return Port(name=value.name, dtype=str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape=shape)


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's progress output, warnings and log lines."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
