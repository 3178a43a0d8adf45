"""Test doubles for decoding on a GPU: its memory is the host's, nvImageCodec decodes with Pillow."""

from __future__ import annotations

import ctypes
import enum
import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from mimruntime.engines.onnxruntime import open_session
from mimruntime.gpu import opening
from mimruntime.gpu.resize import Resizer

STREAM = 99


class HostMemory:
    """Memory that detects overruns, frees of what is not allocated, and leaks."""

    stream = STREAM

    def __init__(self, *_):
        self.blocks = {}
        self.waits = 0
        self.closed = False

    def allocate(self, size):
        block = np.full(size, 0xCD, np.uint8)
        self.blocks[block.ctypes.data] = block
        return block.ctypes.data

    def free(self, address):
        del self.blocks[address]

    def upload(self, address, memory):
        self._check(address, memory.nbytes)
        ctypes.memmove(address, memory.ctypes.data, memory.nbytes)

    def download(self, memory, address):
        self._check(address, memory.nbytes)
        ctypes.memmove(memory.ctypes.data, address, memory.nbytes)

    def synchronize(self):
        self.waits += 1

    def keep_memory(self):
        pass

    def close(self):
        assert not self.blocks, "memory was not freed"
        self.closed = True

    def _check(self, address, size):
        inside = any(
            start <= address and address + size <= start + block.nbytes for start, block in self.blocks.items()
        )
        assert inside, "a copy beyond the allocated memory"


class _Kinds(enum.Enum):
    CPU_ONLY, GPU_ONLY, HYBRID_CPU_GPU, HW_GPU_ONLY = 1, 2, 3, 4


class Picture:
    """As `nvimgcodec.Image`."""

    def __init__(self, pixels):
        self._pixels = pixels
        self.shape, self.strides = pixels.shape, pixels.strides

    @property
    def __cuda_array_interface__(self):
        return {"data": (self._pixels.ctypes.data, False), "shape": self.shape, "typestr": "|u1", "version": 3}


class PlantedCodec:
    """The names of nvImageCodec that are used.

    Attributes:
        refused: files that it does not decode.
        decoded: the number of files of every call.
        missing: the reason why no decoder can be created.

    """

    __version__ = "0.9.0"
    BackendKind = _Kinds
    ColorSpec = SimpleNamespace(SRGB=1)

    def __init__(self):
        self.refused, self.decoded, self.missing = set(), [], None

    Backend = staticmethod(lambda kind: kind)
    CodeStream = staticmethod(bytes)

    def DecodeParams(self, *, apply_exif_orientation, color_spec, allow_any_depth):  # noqa: N802 - its name
        assert not apply_exif_orientation, "the resize turns a picture upright"
        assert (color_spec, allow_any_depth) == (1, False)

    def Decoder(self, *, device_id, max_num_cpu_threads, backends, options):  # noqa: N802 - its name
        if self.missing:
            raise RuntimeError(self.missing)
        assert device_id == 0
        assert max_num_cpu_threads >= 1
        assert _Kinds.CPU_ONLY not in backends, "the CPU would decode, and nobody would count it"
        assert ":fancy_upsampling=1" in options
        return SimpleNamespace(decode=self._decode)

    def _decode(self, coded, *, params, cuda_stream):
        assert cuda_stream == STREAM
        self.decoded.append(len(coded))
        return [None if file in self.refused else Picture(_pixels(file)) for file in coded]


def _pixels(file):
    return np.ascontiguousarray(Image.open(io.BytesIO(file)).convert("RGB"))


def plant(monkeypatch):
    """Make `decode="gpu"` run on the host; return the planted library and the list of devices that were opened."""
    codec, devices = PlantedCodec(), []

    def device(*_):
        devices.append(HostMemory())
        return devices[-1]

    monkeypatch.setattr(opening, "codec_library", lambda: codec)
    monkeypatch.setattr(opening, "probe", lambda *_: None)
    monkeypatch.setattr(opening, "CudaDevice", device)
    monkeypatch.setattr(opening, "Resizer", lambda _: Resizer(_on_cpu, "cpu"))
    return codec, devices


def _on_cpu(graph):
    return open_session(graph, provider="cpu", threads=1)
