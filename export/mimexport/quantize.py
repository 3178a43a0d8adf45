"""Quantise an fp32 ONNX graph: int8 matrix products (QDQ), calibrated on real images."""

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
"""Placeholder for the index of the last block until the number of blocks is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Which products to quantise; docs/results/precision.md compares alternatives.

    Attributes:
        skip_first: number of blocks at the start that stay in float32.
        skip_last: number of blocks at the end that stay in float32; the last block computes the pooled rows.
    """

    skip_first: int = 1
    skip_last: int = 1


def quantize_graph(path: Path, images: np.ndarray, recipe: Recipe = Recipe()) -> None:
    """Replace the graph at `path` by its int8 form; softmax, norms, attention products, pooling and L2 stay in float32.

    One graph serves every engine. Activations are signed and symmetric because TensorRT supports only zero point 0. Weights
    have 7 bits because AVX2 without VNNI adds pairs of products in 16 bits.

    Args:
        path: `model.onnx` in float32, in one file.
        images: uint8 (n, H, W, 3), preprocessed for the graph; n ≥ 1.
        recipe: which products to quantise.

    Raises:
        GraphError: there is nothing to quantise, or the weights are in a separate file.
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
            # Not a percentile: [cls] depends on a few very large activations of a ViT, and clipping them changes every vector.
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                # Do not quantise the outputs: the bias is added to them, and no engine needs them in int8.
                "OpTypesToExcludeOutputQuantization": _PRODUCTS,
                # ONNX Runtime computes a product in int8 only if its input has its own QDQ pair.
                "DedicatedQDQPair": True,
                "CalibStridedMinMax": 1,  # hold the activations of one batch in memory, not of all
            },
        )
        _tell_apart(target)
        target.replace(path)


def _tell_apart(path: Path) -> None:
    """Make the scales of QDQ pairs with the same input differ in the last bit; ONNX Runtime merges equal pairs."""
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
    """Return the names of the nodes that `recipe` quantises: products with a constant weight.

    Raises:
        GraphError: there is no such node, or the weights are in a separate file.
    """
    model = onnx.load(path, load_external_data=False)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise GraphError("int8 is not supported for graphs above 2 GB; build with --precision fp16")
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
        raise GraphError(
            f"{path} has no matrix product with a weight in the blocks to quantise; build with --precision fp16"
        )
    return chosen


def _blocks(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the block index of each node, found by the names of nearby parameters; -1 before the first and after the last."""
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
    """Calibration images in small batches, with the interface of ONNX Runtime's calibrator."""

    def __init__(self, images: np.ndarray) -> None:
        self._parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        self.set_range(0, len(self._parts))

    def __len__(self) -> int:
        return len(self._parts)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restrict the iteration to batches `start_index` to `end_index`."""
        self._batches = iter(self._parts[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch by input name, None at the end."""
        part = next(self._batches, None)
        return None if part is None else {_INPUT: part}
