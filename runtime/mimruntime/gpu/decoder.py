"""Fill a batch in a GPU's memory: decode its JPEGs there, resize them into their rows, upload what the CPU decoded."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mimruntime.engines.trt.device import Device
from mimruntime.errors import EngineError, ImageError
from mimruntime.gpu.codec import PURPOSE
from mimruntime.gpu.coded import MOST_PIXELS, GpuJpeg
from mimruntime.gpu.resize import Resizer

_AT_ONCE = 32
"""Most pictures of one call of the decoder, so that the next ones are decoded while these are resized."""


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """The pixels of a batch on the device.

    Attributes:
        address: of the images without an error, uint8 (count, H, W, 3), in order.
        count: their number.
        on_cpu: how many of them the CPU decoded.
        seconds: time that decoding and resizing took.

    """

    address: int
    count: int
    on_cpu: int
    seconds: float


class Codec(Protocol):
    """What `mimruntime.gpu.codec.JpegCodec` does."""

    def decode(self, files: Sequence[bytes], shapes: Sequence[tuple[int, int]]) -> list[int | None]:
        """Return the address of every picture, or None if it could not be decoded."""
        ...

    def close(self) -> None:
        """Free all memory."""
        ...


class GpuDecoder:
    """Decodes and resizes batches on the GPU, one at a time; thread-safe.

    Args:
        device: the GPU's memory, and the stream of `codec` and `resizer`; `close` closes it.
        codec: decodes JPEGs.
        resizer: resizes them.
        prepare: decodes a source on the CPU into `out`.

    """

    def __init__(self, device: Device, codec: Codec, resizer: Resizer, prepare: Callable[..., object]) -> None:
        self._device, self._codec, self._resizer, self._prepare = device, codec, resizer, prepare
        self._filling = threading.Lock()
        self._spare: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def batch(
        self, pixels: np.ndarray, coded: list[GpuJpeg | None], errors: list[ImageError | None]
    ) -> Iterator[DeviceBatch]:
        """Fill a batch; its rows stay on the device as long as the block runs.

        Args:
            pixels: uint8 (B, H, W, 3), the rows of images that the CPU decoded.
            coded: an image for the GPU, or None if its row is in `pixels`; cleared, to free the files before the engine runs.
            errors: an error for every image without pixels; the images that nothing can decode are added.

        Raises:
            EngineError: the GPU failed.

        """
        address = self._buffer(pixels.nbytes)
        try:
            filled = self._filled(address, pixels, coded, errors)
            coded.clear()
            yield filled
        finally:
            self._spare.append((pixels.nbytes, address))

    def download(self, address: int, pixels: np.ndarray) -> None:
        """Copy rows from the device to `pixels`, uint8 (n, H, W, 3)."""
        with self._filling:
            self._device.download(pixels, address)
            self._device.synchronize()

    def close(self) -> None:
        """Free all memory; no batch may be in use."""
        self._device.synchronize()
        self._resizer.close()
        self._codec.close()
        for _, address in self._spare:
            self._device.free(address)
        self._spare.clear()
        self._device.close()

    def _buffer(self, size: int) -> int:
        with self._filling:
            for index, (spare, address) in enumerate(self._spare):
                if spare == size:
                    del self._spare[index]
                    return address
            return self._device.allocate(size)

    def _filled(
        self, address: int, pixels: np.ndarray, coded: Sequence[GpuJpeg | None], errors: list[ImageError | None]
    ) -> DeviceBatch:
        try:
            with self._filling:
                return self._fill(address, pixels, coded, errors)
        except EngineError:
            raise
        except Exception as error:  # of nvImageCodec and ONNX Runtime, whose types are not public
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise EngineError(f"{PURPOSE} failed on a batch of {len(coded)}: {reason}") from error

    def _fill(
        self, address: int, pixels: np.ndarray, coded: Sequence[GpuJpeg | None], errors: list[ImageError | None]
    ) -> DeviceBatch:
        started, row, on_cpu = time.perf_counter(), address, 0
        for group in _groups(coded):
            pictures = self._decode([coded[index] for index in group])
            for index, picture in zip(group, pictures, strict=True):
                jpeg = coded[index]
                if jpeg is not None and picture is not None:
                    self._resizer.resize(picture, jpeg.height, jpeg.width, jpeg.plan, row)
                elif self._on_cpu(jpeg, pixels[index], index, errors):
                    self._device.upload(row, pixels[index])
                    on_cpu += 1
                else:
                    continue
                row += pixels[index].nbytes
        self._device.synchronize()
        self._resizer.trim()
        return DeviceBatch(address, (row - address) // pixels[0].nbytes, on_cpu, time.perf_counter() - started)

    def _decode(self, group: Sequence[GpuJpeg | None]) -> list[int | None]:
        """Return the address of every picture, or None."""
        jpegs = [jpeg for jpeg in group if jpeg is not None]
        if not jpegs:
            return [None] * len(group)
        found = iter(self._codec.decode([jpeg.data for jpeg in jpegs], [(jpeg.height, jpeg.width) for jpeg in jpegs]))
        return [None if jpeg is None else next(found) for jpeg in group]

    def _on_cpu(self, jpeg: GpuJpeg | None, out: np.ndarray, index: int, errors: list[ImageError | None]) -> bool:
        """Return whether the CPU has decoded an image, now if the GPU could not."""
        if jpeg is not None:
            try:
                self._prepare(jpeg.source, out=out)
            except ImageError as error:
                errors[index] = error
        return errors[index] is None


def _groups(coded: Sequence[GpuJpeg | None]) -> Iterator[range]:
    """Yield ranges of images that are decoded at once: few enough to fit into the GPU's memory."""
    first = pixels = 0
    for index, jpeg in enumerate(coded):
        added = 0 if jpeg is None else jpeg.width * jpeg.height
        if index > first and (pixels + added > MOST_PIXELS or index - first == _AT_ONCE):
            yield range(first, index)
            first, pixels = index, 0
        pixels += added
    yield range(first, len(coded))
