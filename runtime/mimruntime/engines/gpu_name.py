"""Query the GPU's name from the driver; ONNX Runtime has no call for it."""

from __future__ import annotations

import ctypes
import sys

NO_GPU = "no GPU"


def gpu_name() -> str:
    """Return the name of the first GPU this process may use ("NVIDIA L4"), or `NO_GPU`."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return NO_GPU
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
    )
    return NO_GPU if failed else name.value.decode()
