"""The engine `tensorrt` (TensorRT 10 and 11): plans are built on an NVIDIA GPU for that GPU."""

from __future__ import annotations

from functools import partial

from mimruntime.engines.trt import engine
from mimruntime.engines.trt.flavour import TENSORRT as FLAVOUR

NAME = FLAVOUR.name
NEEDS_GPU = True
CPU_PRECISIONS: frozenset[str] = frozenset()
OPTIONS = frozenset({"batch", "hardware-compat", "tf32", "timing-cache", "workspace"})

check_options = partial(engine.check_options, FLAVOUR)
compile_engine = partial(engine.compile_engine, FLAVOUR)
open_engine = partial(engine.open_engine, FLAVOUR)
other_hardware = partial(engine.other_hardware, FLAVOUR)


def library_version() -> str:
    """Return the version of the library; raise MissingExtraError if it is not installed."""
    return str(FLAVOUR.load().__version__)
