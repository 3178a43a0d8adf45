"""Test doubles for the executor: a device in host memory, and a TensorRT engine computed by ONNX Runtime."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime

ALIGNMENT = 256
POISON = 0xCD


class HostDevice:
    """A device in host memory that detects overruns, uninitialised reads and leaks; it runs work in `synchronize`."""

    stream = 77

    def __init__(self):
        self.blocks = {}
        self.pinned = {}
        self.graphs = {}
        self.queue = []
        self.recording = None
        self.closed = False
        self.launches = 0
        self._next = ALIGNMENT

    def allocate(self, size):
        assert size > 0
        address, self._next = self._next, self._next + -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        self.blocks[address] = np.full(size, POISON, np.uint8)
        return address

    def free(self, address):
        assert not self.queue, "memory freed under work that has not run"
        del self.blocks[address]  # a second time raises KeyError

    def pin(self, size):
        memory = np.full(size, POISON, np.uint8)
        self.pinned[memory.ctypes.data] = memory
        return memory

    def unpin(self, memory):
        del self.pinned[memory.ctypes.data]

    def upload(self, address, memory):
        self._check_pinned(memory)
        self._submit(lambda: np.copyto(self.at(address, memory.nbytes), memory))

    def download(self, memory, address):
        self._check_pinned(memory)
        self._submit(lambda: np.copyto(memory, self.at(address, memory.nbytes)))

    def capture(self, work):
        assert self.recording is None
        self.recording = []
        try:
            work()
            graph = object()
            self.graphs[graph] = self.recording
        finally:
            self.recording = None
        return graph

    def launch(self, graph):
        self.launches += 1
        for step in self.graphs[graph]:
            self._submit(step)

    def discard(self, graph):
        del self.graphs[graph]

    def synchronize(self):
        assert self.recording is None, "a stream that is captured cannot be waited for"
        steps, self.queue = self.queue, []
        for step in steps:
            step()

    def close(self):
        assert not self.closed
        assert not self.blocks, "device memory leaked"
        assert not self.pinned, "pinned memory leaked"
        assert not self.graphs, "graphs leaked"
        self.closed = True

    def submit(self, step):
        """Enqueue work of an engine on the stream."""
        self._submit(step)

    def at(self, address, size):
        """Return `size` bytes at `address`, which must be the start of a large enough block."""
        block = self.blocks[address]
        assert size <= len(block), f"{size} bytes wanted of a block of {len(block)}"
        return block[:size]

    def _submit(self, step):
        assert not self.closed
        (self.queue if self.recording is None else self.recording).append(step)

    def _check_pinned(self, memory):
        owner = memory.base if memory.base is not None else memory
        assert owner.ctypes.data in self.pinned, "copied from memory that is not pinned"


class OrtEngine:
    """The part of `ICudaEngine` that the executor uses, computed by ONNX Runtime on a `HostDevice`."""

    device_memory_size_v2 = 1000

    def __init__(self, trt, graph, device, profile):
        self.trt = trt
        self.device = device
        self.profile = profile
        self.session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        self.ports = {port.name: port for port in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.contexts = []

    @property
    def num_io_tensors(self):
        return len(self.ports)

    def get_tensor_name(self, index):
        return list(self.ports)[index]

    def get_tensor_mode(self, name):
        is_input = name == self.session.get_inputs()[0].name
        return self.trt.TensorIOMode.INPUT if is_input else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return {"tensor(uint8)": self.trt.DataType.UINT8, "tensor(float)": self.trt.DataType.FLOAT}[
            self.ports[name].type
        ]

    def get_tensor_shape(self, name):
        return (-1, *self.ports[name].shape[1:])

    def get_tensor_profile_shape(self, name, profile_index):
        assert profile_index == 0
        return [(batch, *self.ports[name].shape[1:]) for batch in self.profile]

    def create_runtime_config(self):
        return SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: None,
            dynamic_shapes_kernel_specialization_strategy=None,
        )

    def create_execution_context(self, config):
        context = OrtContext(self)
        self.contexts.append(context)
        return context


class OrtContext:
    """The part of `IExecutionContext` that the executor uses."""

    capturable = True

    def __init__(self, engine):
        self.engine = engine
        self.addresses = {}
        self.shape = None
        self.scratch = None
        self.runs = 0

    def set_device_memory(self, memory, size):
        self.engine.device.at(memory, size)
        self.scratch = memory

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.profile
        self.shape = tuple(shape)
        return low <= shape[0] <= high

    def set_tensor_address(self, name, memory):
        self.addresses[name] = memory
        return memory % ALIGNMENT == 0

    def is_stream_capturable(self, stream):
        return self.capturable

    def execute_async_v3(self, stream_handle):
        assert stream_handle == self.engine.device.stream
        assert self.addresses.keys() == self.engine.ports.keys()
        assert self.scratch is not None
        self.engine.device.submit(self._compute)
        return True

    def _compute(self):
        self.runs += 1
        device, session = self.engine.device, self.engine.session
        name = session.get_inputs()[0].name
        pixels = device.at(self.addresses[name], int(np.prod(self.shape))).reshape(self.shape)
        for port, array in zip(session.get_outputs(), session.run(None, {name: pixels}), strict=True):
            np.copyto(
                device.at(self.addresses[port.name], array.nbytes), np.ascontiguousarray(array).view(np.uint8).ravel()
            )
