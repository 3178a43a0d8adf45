"""Measure this machine's rate of large matrix products, by precision."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import numpy as np

from mimruntime.cpus import available_cpus, multiplies_bf16
from mimruntime.engines.openvino_model import process_core

_SIDE = 2048
"""Edge of the measured square matrices."""
_PRODUCTS = 5


def matrix_rates() -> dict[str, float]:
    """Return FLOP/s by precision: "fp32" with numpy; "bf16" with OpenVINO, if installed and supported by the CPU."""
    rates = {"fp32": _rate(_numpy_product())}
    if multiplies_bf16():
        with contextlib.suppress(ImportError):
            rates["bf16"] = _rate(_openvino_product("bf16"))
    return rates


def _rate(multiply: Callable[[], object]) -> float:
    """Return the best rate of `_PRODUCTS` runs after a warm-up run, FLOP/s."""
    multiply()
    seconds = []
    for _ in range(_PRODUCTS):
        started = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - started)
    return 2 * _SIDE**3 / min(seconds)


def _factors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((_SIDE, _SIDE), np.float32), rng.standard_normal((_SIDE, _SIDE), np.float32)


def _numpy_product() -> Callable[[], object]:
    a, b = _factors()
    return lambda: a @ b


def _openvino_product(precision: str) -> Callable[[], object]:
    """Return a product with a constant matrix, like a layer's weights."""
    import openvino  # noqa: PLC0415 - an optional extra
    from openvino import opset13  # noqa: PLC0415

    a, b = _factors()
    given = opset13.parameter([_SIDE, _SIDE], np.float32)
    model = openvino.Model([opset13.matmul(given, opset13.constant(b), False, False)], [given])
    config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": available_cpus(), "NUM_STREAMS": 1}
    request = process_core().compile_model(model, "CPU", config).create_infer_request()
    return lambda: request.infer({0: a}, share_inputs=True)
