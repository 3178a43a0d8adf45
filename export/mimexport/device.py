"""The device on which torch computes in fitting and evaluation: the CPU or an NVIDIA GPU, in full float32."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from mimruntime.errors import OptionError, UnknownNameError

DEVICES = ("auto", "cpu", "cuda")
CPU = torch.device("cpu")


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; "auto" is the GPU if torch sees one, else the CPU.

    Raises:
        UnknownNameError: it is not in `DEVICES`.
        OptionError: "cuda" is asked for, and torch sees no GPU.

    """
    if name not in DEVICES:
        raise UnknownNameError("device", name, DEVICES)
    seen = torch.cuda.is_available()
    if name == "cuda" and not seen:
        raise OptionError(
            f"--device cuda: torch {torch.__version__} sees no GPU; check the driver (nvidia-smi) and that this torch is a"
            " build with CUDA, or use --device cpu"
        )
    return torch.device("cuda") if seen and name != "cpu" else CPU


def describe_device(device: torch.device) -> str:
    """Return the device for a message: 'cpu', or 'cuda (NVIDIA H100 80GB HBM3)'."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products on a GPU in float32, not in TF32; then restore the caller's settings.

    TF32 halves the k-NN accuracy of [cls] of a masked autoencoder, because its vectors are nearly parallel.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def lone_threads() -> Iterator[tuple[Executor, int]]:
    """Yield a pool of as many threads as torch has, and their number; until the end torch computes alone in every thread.

    Threads that share a product wait for the slowest of them. Beside other programs that may take four times as long.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that are made later take it over
    try:
        with ThreadPoolExecutor(count, "mimexport-torch") as pool:
            yield pool, count
    finally:
        torch.set_num_threads(count)
