"""Open the decoder of this machine's GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mimruntime.cpus import decoding_threads
from mimruntime.engines.onnxruntime import open_session
from mimruntime.engines.trt.cuda import CudaDevice, probe
from mimruntime.gpu.codec import EXTRA, PURPOSE, JpegCodec, codec_library
from mimruntime.gpu.decoder import GpuDecoder
from mimruntime.gpu.resize import Resizer


def open_gpu_decoder(prepare: Callable[..., object]) -> GpuDecoder:
    """Return a decoder on the first GPU.

    Args:
        prepare: decodes a source on the CPU, for images that the GPU fails to decode.

    Raises:
        MissingExtraError: a package of the extra `gpu-decode` is not installed.
        EngineError: there is no GPU, its driver is too old, or ONNX Runtime has no provider for it.

    """
    library = codec_library()
    probe(PURPOSE, EXTRA, "leave out --decode gpu")
    device = CudaDevice(PURPOSE, EXTRA)
    try:
        device.keep_memory()
        codec = JpegCodec(library, device.stream, decoding_threads())
        resizer = Resizer(partial(open_session, provider="cuda", threads=1, stream=device.stream))
        return GpuDecoder(device, codec, resizer, prepare)
    except BaseException:
        device.close()
        raise
