"""fp32 ONNX graph -> the same graph with int8 matrix products (QDQ), calibrated on real images."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from mimexport.errors import GraphError
from mimexport.graph import quiet_exporter
from mimruntime.errors import MissingExtraError

_INPUT = "pixels"
_PRODUCTS = ["MatMul", "Gemm"]
_BATCH = 4
_LAST = 1 << 30
"""Stands for the last block until the number of blocks before it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Which products are quantised; docs/results/precision.md has the figures of others.

    Attributes:
        skip_first: so many blocks at the start keep float32.
        skip_last: so many blocks at the end keep float32; the last one makes the keys and the pooled rows.
    """

    skip_first: int = 1
    skip_last: int = 1


def quantize_graph(path: Path, images: np.ndarray, recipe: Recipe = Recipe()) -> None:
    """Replace the graph at `path` by its int8 form; softmax, norms, attention products, pooling and L2 stay float32.

    One graph for every engine: activations are signed and symmetric, since TensorRT takes no zero point but 0; weights
    have 7 bits, since AVX2 without VNNI adds pairs in 16 bits.

    Args:
        path: `model.onnx` in float32, in one file.
        images: uint8 (n, H, W, 3), preprocessed as the graph expects; n ≥ 1.
        recipe: what is quantised.

    Raises:
        GraphError: nothing to quantise, or weights beside the graph.
        MissingExtraError: onnxruntime is not installed.
    """
    try:
        from onnxruntime import quantization  # noqa: PLC0415 - slow to import
    except ImportError as error:
        raise MissingExtraError("int8", "cpu") from error
    nodes = products(path, recipe)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".int8.") as folder, quiet_exporter():
        target = Path(folder) / path.name
        quantization.quantize_static(
            path,
            target,
            _Reader(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_PRODUCTS,
            nodes_to_quantize=nodes,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            # No percentile: the few huge activations of a ViT carry [cls], and clipping them moves every vector.
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                # Products stay as wide as they are summed: the bias comes after, and no engine needs them narrow.
                "OpTypesToExcludeOutputQuantization": _PRODUCTS,
                # ONNX Runtime computes in int8 only where input and product have a pair of their own.
                "DedicatedQDQPair": True,
                "CalibStridedMinMax": 1,  # activations of one batch are held, not of all
            },
        )
        _tell_apart(target)
        target.replace(path)


def _tell_apart(path: Path) -> None:
    """Give pairs of one input scales that differ in the last bit: ONNX Runtime would merge equal ones again."""
    model = onnx.load(path)
    graph = model.graph
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    back = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    copies: Counter[tuple[str, ...]] = Counter()
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            copy = copies[tuple(node.input)]
            copies[tuple(node.input)] += 1
            if copy:
                scale = scales[node.input[1]]
                moved = scale + np.float32(copy) * np.spacing(scale)
                name = f"{node.output[0]}_scale"
                graph.initializer.append(onnx.numpy_helper.from_array(moved, name))
                back[node.output[0]].input[1] = node.input[1] = name
    onnx.save(model, path)


def products(path: Path, recipe: Recipe) -> list[str]:
    """Return the names of the products by a weight that `recipe` quantises.

    Raises:
        GraphError: there is none.
    """
    model = onnx.load(path, load_external_data=False)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise GraphError("int8 of a graph above 2 GB is not supported; build it with --precision fp16")
    constants = {tensor.name for tensor in model.graph.initializer}
    blocks = _blocks(model.graph)
    last = max(blocks.values(), default=0)
    chosen = [
        node.name
        for node in model.graph.node
        if node.op_type in _PRODUCTS
        and any(name in constants for name in node.input)
        and recipe.skip_first <= blocks.get(node.name, -1) <= last - recipe.skip_last
    ]
    if not chosen:
        raise GraphError(f"{path} has no product by a weight inside a block to quantise")
    return chosen


def _blocks(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the block of every node from the names of parameters around it; -1 before the first and after the last."""
    found = [re.search(r"\bbackbone\.(?:blocks\.(\d+)|(last_block))\.", " ".join(node.input)) for node in graph.node]
    numbers = [None if match is None else int(match[1]) if match[1] else _LAST for match in found]
    before = [number for number in numbers if number not in {None, _LAST}]
    end = max((index for index, number in enumerate(numbers) if number is not None), default=-1)
    blocks: dict[str, int] = {}
    current = -1
    for index, (node, number) in enumerate(zip(graph.node, numbers, strict=True)):
        if number is not None:
            current = max(current, max(before, default=-1) + 1 if number == _LAST else number)
        blocks[node.name] = current if index <= end else -1
    return blocks


class _Reader:
    """Images in small batches, as the calibrator asks for them."""

    def __init__(self, images: np.ndarray) -> None:
        self._parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        self.set_range(0, len(self._parts))

    def __len__(self) -> int:
        return len(self._parts)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give these batches next."""
        self._batches = iter(self._parts[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch by input name, None at the end."""
        part = next(self._batches, None)
        return None if part is None else {_INPUT: part}
