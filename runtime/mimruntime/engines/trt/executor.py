"""Run a deserialised engine on a device: memory allocated once, one stream, one captured graph per batch size."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimruntime.engines.trt.device import Device
from mimruntime.engines.trt.messages import Messages
from mimruntime.errors import EngineError


@dataclass(frozen=True, slots=True, eq=False)
class _Port:
    """An input or output of the engine with its device and host buffers, both sized for the profile's largest batch."""

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """Shape without the batch dimension."""
    address: int
    pinned: np.ndarray
    """uint8 (most * row_bytes,)."""

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, count: int) -> np.ndarray:
        """Return the first `count` rows of the host buffer with their dtype and shape."""
        return self.pinned[: count * self.row_bytes].view(self.dtype).reshape(count, *self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class _Bucket:
    """One batch size: a context with that shape, and its captured graph (None if it cannot be captured)."""

    size: int
    context: Any
    graph: Any | None


class Executor:
    """Runs batches of the profile's sizes; not thread-safe.

    A batch runs in the smallest bucket that holds it. Each bucket has its own execution context, because a captured graph
    is valid only while its context is unchanged. Buckets run one after the other and share one scratch memory.

    Args:
        trt: the module of the library.
        engine: an `ICudaEngine`.
        device: the device; `close` closes it.
        messages: messages of the logger that `engine` was created with.

    Raises:
        EngineError: the engine does not have one uint8 input and float32 outputs, or memory is insufficient.

    """

    def __init__(self, trt: Any, engine: Any, device: Device, messages: Messages) -> None:
        self._trt, self._engine, self._device, self._messages = trt, engine, device, messages
        self._buckets: dict[int, _Bucket] = {}
        self._owned = ExitStack()
        self._owned.callback(device.close)
        try:
            self.sizes = self._read_profile()
            self._scratch_size = int(engine.device_memory_size_v2)
            self._scratch = self._allocate(max(self._scratch_size, 1))
            names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
            ports = [self._port(name) for name in names]
            self._input = next(port for port in ports if port.is_input)
            self._outputs = [port for port in ports if not port.is_input]
            self._owned.callback(self._buckets.clear)  # free contexts after their graphs and before their memory
        except BaseException:
            self.close()
            raise

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of one image, (H, W, 3)."""
        return self._input.shape

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(port.name for port in self._outputs)

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs of one batch as new arrays.

        Args:
            pixels: uint8 (B, H, W, 3), B from 1 to the profile's largest batch.

        Raises:
            EngineError: the batch exceeds the profile, the executor is closed, or the run failed.

        """
        if self._engine is None:
            raise EngineError("this engine is closed")
        count = len(pixels)
        if not 1 <= count <= self.sizes[-1]:
            raise EngineError(f"a batch of {count}: this plan runs 1 to {self.sizes[-1]} images at once")
        bucket = self._bucket(next(size for size in self.sizes if size >= count))
        self._input.rows(count)[:] = pixels
        if bucket.graph is None:
            self._enqueue(bucket.context, bucket.size)
        else:
            self._device.launch(bucket.graph)
        self._device.synchronize()
        return {port.name: port.rows(count).copy() for port in self._outputs}

    def close(self) -> None:
        """Free all memory; further calls do nothing."""
        self._engine = None
        self._owned.close()

    def _read_profile(self) -> tuple[int, ...]:
        """Return the batch sizes of the buckets, smallest first."""
        names = (self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors))
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        if len(inputs) != 1:
            raise EngineError(f"the plan has the inputs {inputs}, expected one")
        least, best, most = (shape[0] for shape in self._engine.get_tensor_profile_shape(inputs[0], 0))
        return bucket_sizes(least, best, most)

    def _port(self, name: str) -> _Port:
        is_input = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        expected = np.dtype(np.uint8 if is_input else np.float32)
        if dtype != expected:
            raise EngineError(f"the plan's '{name}' is {dtype}, expected {expected}")
        shape = tuple(self._engine.get_tensor_shape(name))[1:]
        size = self.sizes[-1] * math.prod(shape) * dtype.itemsize
        address = self._allocate(size)
        pinned = self._device.pin(size)
        self._owned.callback(self._device.unpin, pinned)
        return _Port(name, is_input, dtype, shape, address, pinned)

    def _allocate(self, size: int) -> int:
        address = self._device.allocate(size)
        self._owned.callback(self._device.free, address)
        return address

    def _bucket(self, size: int) -> _Bucket:
        """Return the bucket of `size`; create it on first use."""
        if size not in self._buckets:
            context = self._context(size)
            # Run once before capturing: a context does extra work on its first run.
            self._enqueue(context, size)
            self._device.synchronize()
            self._buckets[size] = _Bucket(size, context, self._captured(context, size))
        return self._buckets[size]

    def _context(self, size: int) -> Any:
        self._messages.clear()
        context = make_context(self._trt, self._engine)
        if context is None:
            raise self._messages.failure("the engine gives no execution context")
        context.set_device_memory(self._scratch, self._scratch_size)
        accepted = context.set_input_shape(self._input.name, (size, *self._input.shape))
        for port in (self._input, *self._outputs):
            accepted = context.set_tensor_address(port.name, port.address) and accepted
        if not accepted:
            raise self._messages.failure(f"the engine does not take a batch of {size}")
        return context

    def _captured(self, context: Any, size: int) -> Any | None:
        # TensorRT-RTX returns False while it compiles kernels; TensorRT does not have this method.
        capturable = getattr(context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._device.stream):
            return None
        graph = self._device.capture(lambda: self._enqueue(context, size))
        self._owned.callback(self._device.discard, graph)
        return graph

    def _enqueue(self, context: Any, size: int) -> None:
        """Enqueue upload, run and downloads of one batch on the stream."""
        self._messages.clear()
        self._device.upload(self._input.address, self._input.pinned[: size * self._input.row_bytes])
        if not context.execute_async_v3(self._device.stream):
            raise self._messages.failure(f"a batch of {size} failed")
        for port in self._outputs:
            self._device.download(port.pinned[: size * port.row_bytes], port.address)


def bucket_sizes(least: int, best: int, most: int) -> tuple[int, ...]:
    """Return the batch sizes of a profile's buckets, smallest first: its three sizes and the powers of two between."""
    powers = {1 << power for power in range(most.bit_length())}
    return tuple(sorted({least, best, most} | {size for size in powers if least <= size <= most}))


def make_context(trt: Any, engine: Any) -> Any:
    """Return an execution context whose scratch memory the caller provides.

    TensorRT-RTX compiles kernels at run time; EAGER compiles them for the context's shape during the first run.
    """
    managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(managed)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(managed)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)
