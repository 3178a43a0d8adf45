"""A GPU that is not there, and an engine that ONNX Runtime computes behind the real library's `Runtime`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from host_device import HostDevice, OrtEngine

from mimruntime.engines.trt import cuda


@pytest.fixture
def gpu(monkeypatch):
    """Makes this machine have a GPU, sm89 unless a test says otherwise; whatever runs on it must be a stand-in."""
    card = SimpleNamespace(value=cuda.Gpu("NVIDIA L4", "sm89"))
    monkeypatch.setattr(cuda, "probe", lambda purpose, extra: card.value)
    return card


@pytest.fixture
def stand_in_runtime(gpu, monkeypatch, toy_artifact):
    """Opens every plan as ONNX Runtime on host memory; gives the devices that were made."""
    trt = pytest.importorskip("tensorrt_rtx")
    devices = []

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            assert plan[:4] == b"vtrt", "not what the real builder wrote"
            devices.append(HostDevice())
            return OrtEngine(trt, toy_artifact / "model.onnx", devices[-1], (1, 4, 8))

    monkeypatch.setattr(trt, "Runtime", Runtime)
    monkeypatch.setattr(cuda, "CudaDevice", lambda purpose, extra: devices[-1])
    return devices
