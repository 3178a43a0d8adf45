"""The NVIDIA GPU through `cuda-bindings`: is there one, and the device protocol on it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimruntime.errors import EngineError, MissingExtraError


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that would run.

    Attributes:
        name: as the driver reports it ("NVIDIA L4").
        arch: its compute capability ("sm89").

    """

    name: str
    arch: str

    @property
    def capability(self) -> int:
        """The compute capability as one number: 89 for 8.9, 120 for 12.0."""
        return int(self.arch.removeprefix("sm"))

    def __str__(self) -> str:
        return f"{self.name} ({self.arch})"


def probe(purpose: str, extra: str) -> Gpu:
    """Return the GPU at hand, without touching TensorRT: its runtime crashes the process where there is no driver.

    Args:
        purpose: what needs it, for the error ("the engine 'tensorrt'").
        extra: the extra of this distribution that brings `cuda-bindings`.

    Raises:
        MissingExtraError: `cuda-bindings` is not installed.
        EngineError: no driver, one that is too old, or no GPU.

    """
    cuda = _library(purpose, extra)
    status, count = cuda.cudaGetDeviceCount()
    if int(status) or not count:
        reason = _explain(cuda, status) if int(status) else "the driver sees none"
        raise EngineError(
            f"{purpose} needs an NVIDIA GPU and a driver that is new enough: {reason};"
            " without one use --engine onnxruntime or openvino"
        )
    status, properties = cuda.cudaGetDeviceProperties(0)
    if int(status):
        raise EngineError(f"{purpose} cannot ask the GPU what it is: {_explain(cuda, status)}")
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name.rstrip("\0"), f"sm{properties.major}{properties.minor}")


class CudaDevice:
    """The first GPU; see `mimruntime.engines.trt.device.Device`. Made after `probe` found it."""

    def __init__(self, purpose: str, extra: str) -> None:
        self._cuda = _library(purpose, extra)
        self._handle = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        self.stream = int(self._handle)
        self._pinned: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the device."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        self._call("cudaFree", address)

    def pin(self, size: int) -> np.ndarray:
        """Return page-locked host memory, uint8 (size,)."""
        address = int(self._call("cudaMallocHost", size))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        self._pinned[memory.ctypes.data] = address
        return memory

    def unpin(self, memory: np.ndarray) -> None:
        """Give back what `pin` gave."""
        self._call("cudaFreeHost", self._pinned.pop(memory.ctypes.data))

    def upload(self, address: int, memory: np.ndarray) -> None:
        """Copy pinned `memory` to the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, memory.ctypes.data, memory.nbytes, kind, self._handle)

    def download(self, memory: np.ndarray, address: int) -> None:
        """Copy to pinned `memory` from the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", memory.ctypes.data, address, memory.nbytes, kind, self._handle)

    def capture(self, work: Callable[[], None]) -> Any:
        """Return a CUDA graph of what `work` would do on the stream."""
        self._call(
            "cudaStreamBeginCapture", self._handle, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            work()
        except BaseException:
            with contextlib.suppress(EngineError):  # the capture is void; the error of `work` is the one to report
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", self._handle))
            raise
        template = self._call("cudaStreamEndCapture", self._handle)
        try:
            return self._call("cudaGraphInstantiate", template, 0)
        finally:
            self._call("cudaGraphDestroy", template)

    def launch(self, graph: Any) -> None:
        """Do what the graph captured."""
        self._call("cudaGraphLaunch", graph, self._handle)

    def discard(self, graph: Any) -> None:
        """Give a graph back."""
        self._call("cudaGraphExecDestroy", graph)

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        self._call("cudaStreamSynchronize", self._handle)

    def close(self) -> None:
        """Give the stream back."""
        self._call("cudaStreamDestroy", self._handle)

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the CUDA runtime and return its one result, if it has one."""
        status, *results = getattr(self._cuda, function)(*arguments)
        if int(status):
            raise EngineError(f"{function} failed: {_explain(self._cuda, status)}")
        return results[0] if results else None


def _library(purpose: str, extra: str) -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ModuleNotFoundError as error:
        raise MissingExtraError(purpose, extra=extra) from error


def _explain(cuda: Any, status: Any) -> str:
    name, text = (ask(status)[1].decode() for ask in (cuda.cudaGetErrorName, cuda.cudaGetErrorString))
    return f"{text} ({name} {int(status)})"
