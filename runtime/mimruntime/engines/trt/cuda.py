"""Detect the NVIDIA GPU and implement the device protocol with `cuda-bindings`."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimruntime.errors import EngineError, MissingExtraError

_KEPT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Gpu:
    """This machine's first GPU.

    Attributes:
        name: name reported by the driver ("NVIDIA L4").
        arch: compute capability ("sm89").

    """

    name: str
    arch: str

    @property
    def capability(self) -> int:
        """The compute capability as one number: 89 for 8.9, 120 for 12.0."""
        return int(self.arch.removeprefix("sm"))

    def __str__(self) -> str:
        return f"{self.name} ({self.arch})"


def probe(purpose: str, extra: str, instead: str = "use --engine onnxruntime or openvino") -> Gpu:
    """Return the first GPU. This does not load TensorRT, whose runtime crashes the process without a driver.

    Args:
        purpose: what needs the GPU, for the error ("the engine 'tensorrt'").
        extra: pip extra that contains `cuda-bindings`.
        instead: what to do without a GPU, for the error.

    Raises:
        MissingExtraError: `cuda-bindings` is not installed.
        EngineError: there is no driver or no GPU, or the driver is too old.

    """
    cuda = _library(purpose, extra)
    status, count = cuda.cudaGetDeviceCount()
    if int(status) or not count:
        reason = _explain(cuda, status) if int(status) else "the driver sees none"
        raise EngineError(f"{purpose} needs an NVIDIA GPU and a recent driver: {reason}; without a GPU {instead}")
    status, properties = cuda.cudaGetDeviceProperties(0)
    if int(status):
        raise EngineError(f"{purpose} cannot read the GPU's properties: {_explain(cuda, status)}")
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name.rstrip("\0"), f"sm{properties.major}{properties.minor}")


class CudaDevice:
    """The first GPU as a `mimruntime.engines.trt.device.Device`; create it after `probe` succeeded."""

    def __init__(self, purpose: str, extra: str) -> None:
        self._cuda = _library(purpose, extra)
        self._handle = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        self.stream = int(self._handle)
        self._pinned: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the device."""
        return int(self._call("cudaMalloc", size))

    def keep_memory(self) -> None:
        """Keep what libraries free on streams for their next allocation; by default it goes back to the driver."""
        pool = self._call("cudaDeviceGetDefaultMemPool", 0)
        kept = self._cuda.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        self._call(
            "cudaMemPoolSetAttribute",
            pool,
            kept,
            importlib.import_module("cuda.bindings.driver").cuuint64_t(_KEPT_BYTES),
        )

    def free(self, address: int) -> None:
        """Free memory from `allocate`."""
        self._call("cudaFree", address)

    def pin(self, size: int) -> np.ndarray:
        """Return page-locked host memory, uint8 (size,)."""
        address = int(self._call("cudaMallocHost", size))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        self._pinned[memory.ctypes.data] = address
        return memory

    def unpin(self, memory: np.ndarray) -> None:
        """Free memory from `pin`."""
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
        """Return a CUDA graph of the work that `work` enqueues on the stream."""
        self._call(
            "cudaStreamBeginCapture", self._handle, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            work()
        except BaseException:
            with contextlib.suppress(EngineError):  # the capture is invalid; report the error of `work`
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", self._handle))
            raise
        template = self._call("cudaStreamEndCapture", self._handle)
        try:
            return self._call("cudaGraphInstantiate", template, 0)
        finally:
            self._call("cudaGraphDestroy", template)

    def launch(self, graph: Any) -> None:
        """Run a captured graph."""
        self._call("cudaGraphLaunch", graph, self._handle)

    def discard(self, graph: Any) -> None:
        """Free a graph."""
        self._call("cudaGraphExecDestroy", graph)

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        self._call("cudaStreamSynchronize", self._handle)

    def close(self) -> None:
        """Free the stream."""
        self._call("cudaStreamDestroy", self._handle)

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime and return its result, or None."""
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
