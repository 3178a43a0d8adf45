"""fp32 ONNX graph -> the same graph with int8 matrix products (QDQ), calibrated on real images."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from mimexport.errors import GraphError
from mimruntime.errors import MissingExtraError

_INPUT = "pixels"
_BATCH = 4
_PERCENTILE = 99.99
_LAST = 1 << 30
"""Stands for the last block until the number of blocks before it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Which products are quantised, and how; the default is the best of those in docs/engines.md.

    Attributes:
        method: how ranges are found: "minmax", "entropy" or "percentile".
        skip_first: so many blocks at the start keep float32.
        skip_last: so many blocks at the end keep float32; the last one makes the keys and the pooled rows.
        skip_down: the second product of every MLP, whose input has the widest range, keeps float32.
        unsigned_weights: weights as uint8; else int8, with 7 bits, since AVX2 without VNNI adds pairs in 16 bits.
    """

    method: str = "minmax"
    skip_first: int = 1
    skip_last: int = 1
    skip_down: bool = False
    unsigned_weights: bool = False


def quantize_graph(path: Path, images: np.ndarray, recipe: Recipe = Recipe()) -> None:
    """Replace the graph at `path` by its int8 form; softmax, norms, attention products, pooling and L2 stay float32.

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
    methods = {
        "minmax": quantization.CalibrationMethod.MinMax,
        "entropy": quantization.CalibrationMethod.Entropy,
        "percentile": quantization.CalibrationMethod.Percentile,
    }
    extra = {"CalibPercentile": _PERCENTILE} if recipe.method == "percentile" else {}
    weights = quantization.QuantType.QUInt8 if recipe.unsigned_weights else quantization.QuantType.QInt8
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".int8.") as folder, _quiet():
        target = Path(folder) / path.name
        quantization.quantize_static(
            path,
            target,
            _Reader(images),
            quant_format=quantization.QuantFormat.QDQ,
            nodes_to_quantize=nodes,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=weights,
            per_channel=True,
            reduce_range=not recipe.unsigned_weights,
            calibrate_method=methods[recipe.method],
            extra_options={"ActivationSymmetric": False, **extra},
        )
        target.replace(path)


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
    down = _down_projections(model.graph)
    chosen = [
        node.name
        for node in model.graph.node
        if node.op_type in {"MatMul", "Gemm"}
        and any(name in constants for name in node.input)
        and recipe.skip_first <= blocks.get(node.name, -1) <= last - recipe.skip_last
        and not (recipe.skip_down and node.name in down)
    ]
    if not chosen:
        raise GraphError(f"{path} has no product by a weight inside a block to quantise")
    return chosen


def _blocks(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the block of every node from the names of parameters around it; -1 before the first and after the last."""
    found = [
        re.search(r"\bbackbone\.(?:model\.blocks\.(\d+)|(last_block))\.", " ".join(node.input)) for node in graph.node
    ]
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


def _down_projections(graph: onnx.GraphProto) -> set[str]:
    """Return the products whose weight has more rows than columns: the second of every MLP."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found = {node.name: [shapes[name] for name in node.input if name in shapes] for node in graph.node}
    return {name for name, sides in found.items() if any(len(side) == 2 and side[0] > side[1] for side in sides)}


class _Reader:
    """Images in small batches, as the calibrator asks for them."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images
        self._batches = self._iterate()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch by input name, None at the end."""
        return next(self._batches, None)

    def _iterate(self) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self._images), _BATCH):
            yield {_INPUT: self._images[start : start + _BATCH]}


class _quiet:  # noqa: N801 - used as a verb
    """Keep the quantiser's advice to its own developers off the user's terminal."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._level)
