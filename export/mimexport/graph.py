"""EmbeddingModel -> ONNX file, held to the rules that keep it the same on every engine."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
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
"""Bytes; protobuf cannot hold 2 GiB, some room is left for the graph itself."""

_FORBIDDEN = {
    "Resize": "position tables are resampled before the export",
    "Attention": "TensorRT has no float32 kernel for it",
    **dict.fromkeys(("If", "Loop", "Scan"), "the flow must not depend on data"),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Dropout"),
        "an embedding must not depend on chance",
    ),
}


def export_graph(model: EmbeddingModel, folder: Path, size: int) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Write `model` to `folder/model.onnx`, weights beside it where one file would pass 2 GB.

    Args:
        model: in evaluation mode.
        folder: exists and is writable.
        size: edge of the square input, px.

    Returns:
        The graph's inputs and outputs.

    Raises:
        GraphError: the exporter failed, or the graph breaks a rule.

    """
    outputs = ["embedding", "selection"] if model.with_selection else ["embedding"]
    # Two images: a dimension that is 1 while tracing would be frozen to 1.
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
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                optimize=True,
                verbose=False,
            )
            if program is None:
                raise GraphError("the ONNX exporter gave no program")
            fuse(program.model)
            tensors = [value.const_value for value in program.model.graph.initializers.values()]
            stored = sum(tensor.nbytes for tensor in tensors if tensor is not None)
            program.save(path, external_data=stored > _SINGLE_FILE_LIMIT)
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter's own words are advice to its developers
            cause = cause.__cause__
        raise GraphError(f"the ONNX exporter failed: {(str(cause) or type(cause).__name__).splitlines()[0]}") from error
    return check_graph(path, outputs)


def check_graph(path: Path, outputs: list[str]) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Hold the graph at `path` to the rules and return its inputs and outputs.

    Raises:
        GraphError: a forbidden operator, a frozen batch, another port or opset than expected.

    """
    graph = onnx.load(path, load_external_data=False)
    operators = {node.op_type for node in graph.graph.node}
    for operator in sorted(operators & _FORBIDDEN.keys()):
        raise GraphError(f"the graph holds {operator}: {_FORBIDDEN[operator]}")
    opset = next(entry.version for entry in graph.opset_import if entry.domain == "")
    if opset != OPSET:
        raise GraphError(f"the graph has opset {opset}, expected {OPSET}")
    ports_in, ports_out = (tuple(map(_port, side)) for side in (graph.graph.input, graph.graph.output))
    if [port.name for port in ports_in] != [_INPUT] or [port.name for port in ports_out] != outputs:
        names = [port.name for port in ports_in + ports_out]
        raise GraphError(f"the graph has the ports {names}, expected {[_INPUT, *outputs]}")
    for port in ports_in + ports_out:
        if not isinstance(port.shape[0], str) or not all(isinstance(edge, int) for edge in port.shape[1:]):
            raise GraphError(f"{port.name} has shape {port.shape}, expected a free batch and fixed other dimensions")
    return ports_in, ports_out


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    shape = tuple(edge.dim_param or edge.dim_value for edge in tensor.shape.dim)
    return Port(name=value.name, dtype=str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape=shape)


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's progress and its notes to its own developers off the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
