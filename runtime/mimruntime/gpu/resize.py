"""Resize pictures where they lie, in a GPU's memory: Pillow's resize as an ONNX graph."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mimruntime.gpu.coefficients import Coefficients
from mimruntime.gpu.plan import Order, Plan, Side

Memory = Literal["cuda", "cpu"]
"""ONNX Runtime's name of the memory that holds the pictures."""

_MATRIX_BYTES = 256_000_000
"""Memory for the matrices of recent sizes."""


def graph_file(order: Order, *, turned: bool) -> Path:
    """Return the path of a graph; `tools/resize_graphs.py` writes it.

    Args:
        order: the pass that comes first.
        turned: whether rows and columns of the picture are exchanged before.

    """
    return Path(__file__).parent / f"{order}_first{'_turned' if turned else ''}.onnx"


class Resizer:
    """The graphs of the resize, and the matrices of recent sizes in the memory of the pictures; not thread-safe.

    Args:
        open_session: opens a graph on the stream that decodes.
        memory: where the pictures lie.

    """

    def __init__(self, open_session: Callable[[Path], Any], memory: Memory = "cuda") -> None:
        self._ort = ort = importlib.import_module("onnxruntime")
        self._open_session = open_session
        self._memory = memory
        self._sessions: dict[tuple[Order, bool], Any] = {}
        self._matrices: OrderedDict[tuple[str, Side], tuple[Any, Any]] = OrderedDict()
        self._bytes = 0
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def resize(self, address: int, height: int, width: int, plan: Plan, to: int) -> None:
        """Resize the picture at `address`, uint8 (height, width, 3), to `to`, uint8 (size, size, 3).

        It returns when the work is enqueued on the session's stream.
        """
        session, size = self._session(plan), plan.across.size
        binding = session.io_binding()
        binding.bind_input("pixels", self._memory, 0, np.uint8, (height, width, 3), address)
        for direction, side, compute in (
            ("horizontal", plan.across, plan.horizontal),
            ("vertical", plan.down, plan.vertical),
        ):
            high, low = self._both(direction, side, compute)
            binding.bind_ortvalue_input(f"{direction}_high", high)
            binding.bind_ortvalue_input(f"{direction}_low", low)
        binding.bind_output("resized", self._memory, 0, np.uint8, (size, size, 3), to)
        session.run_with_iobinding(binding, self._options)

    def trim(self) -> None:
        """Free the matrices that were not used recently; call it when the stream is empty."""
        while self._bytes > _MATRIX_BYTES:
            (_, side), _ = self._matrices.popitem(last=False)
            self._bytes -= _bytes_of(side)

    def close(self) -> None:
        """Free all memory; call it when the stream is empty."""
        self._matrices.clear()
        self._sessions.clear()

    def _session(self, plan: Plan) -> Any:
        key = plan.order, plan.turned
        if key not in self._sessions:
            self._sessions[key] = self._open_session(graph_file(plan.order, turned=plan.turned))
        return self._sessions[key]

    def _both(self, direction: str, side: Side, compute: Callable[[], Coefficients]) -> tuple[Any, Any]:
        """Return the matrices of an edge where the pictures lie."""
        key = direction, side
        if key in self._matrices:
            self._matrices.move_to_end(key)
        else:
            high, low = (self._ort.OrtValue.ortvalue_from_numpy(part, self._memory, 0) for part in compute())
            self._matrices[key] = high, low
            self._bytes += _bytes_of(side)
        return self._matrices[key]


def _bytes_of(side: Side) -> int:
    return 2 * side.edge * side.size * np.dtype(np.float32).itemsize
