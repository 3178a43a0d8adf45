"""Decode JPEGs on the GPU by nvImageCodec."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

from mimruntime.errors import EngineError, MissingExtraError

PURPOSE, EXTRA = "decoding on the GPU", "gpu-decode"
_QUIET = {"PYNVIMGCODEC_VERBOSITY": "0"}  # a file that it cannot decode is decoded by the CPU
_OPTIONS = ":fancy_upsampling=1"
"""Colours are interpolated as by libjpeg."""


def codec_library() -> Any:
    """Return nvImageCodec.

    Raises:
        MissingExtraError: it is not installed.

    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("nvidia.nvimgcodec")
    except ImportError as error:
        raise MissingExtraError(PURPOSE, extra=EXTRA) from error


class JpegCodec:
    """A decoder of batches of JPEGs; not thread-safe.

    Args:
        library: the module `nvidia.nvimgcodec`.
        stream: handle of the stream on which the pictures are used.
        threads: CPU threads that read the coded data.

    Raises:
        EngineError: the GPU or its library for JPEG is missing.

    """

    def __init__(self, library: Any, stream: int, threads: int) -> None:
        self._library = library
        self._stream = stream
        kinds = library.BackendKind
        backends = [library.Backend(kind) for kind in (kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU)]
        try:
            self._decoder = library.Decoder(
                device_id=0, max_num_cpu_threads=threads, backends=backends, options=_OPTIONS
            )
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise EngineError(f"{PURPOSE}: nvImageCodec cannot be used here: {reason}") from error
        self._params = library.DecodeParams(
            apply_exif_orientation=False, color_spec=library.ColorSpec.SRGB, allow_any_depth=False
        )
        self._images: Sequence[Any] = ()

    def decode(self, files: Sequence[bytes], shapes: Sequence[tuple[int, int]]) -> list[int | None]:
        """Return the address of every picture, uint8 (height, width, 3) on the device; None if it could not be decoded.

        The pictures are valid on the stream until the next call.

        Args:
            files: whole files.
            shapes: height and width of each by its header, px.

        """
        coded = [self._library.CodeStream(file) for file in files]
        self._images = self._decoder.decode(coded, params=self._params, cuda_stream=self._stream)
        return [_address(image, shape) for image, shape in zip(self._images, shapes, strict=True)]

    def close(self) -> None:
        """Free all memory; the stream must be empty."""
        self._images = ()
        self._decoder = None


def _address(image: Any, shape: tuple[int, int]) -> int | None:
    """Return the address of a decoded picture; None if there is none, or not as expected."""
    if image is None or tuple(image.shape) != (*shape, 3) or image.strides[0] != 3 * shape[1]:
        return None
    return int(image.__cuda_array_interface__["data"][0])
