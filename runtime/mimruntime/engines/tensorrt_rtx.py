"""The engine `tensorrt-rtx`: plans are built ahead of time for its architectures, without a GPU."""

from __future__ import annotations

from functools import partial

from mimruntime.engines.trt import engine
from mimruntime.engines.trt.flavour import TENSORRT_RTX as FLAVOUR

NAME = FLAVOUR.name
NEEDS_GPU = True
CPU_PRECISIONS: frozenset[str] = frozenset()
OPTIONS = frozenset({"arch", "batch", "tf32", "workspace"})

check_options = partial(engine.check_options, FLAVOUR)
compile_engine = partial(engine.compile_engine, FLAVOUR)
open_engine = partial(engine.open_engine, FLAVOUR)
other_hardware = partial(engine.other_hardware, FLAVOUR)


def library_version() -> str:
    """Return the version of the library; raise MissingExtraError if it is not installed."""
    return str(FLAVOUR.load().__version__)
