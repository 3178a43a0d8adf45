"""What `auto` stands for.

1. Of the engines compiled for this machine: one for a GPU, in the order of the table; else the one that was measured
   to give the most images per second.
2. Where nothing is compiled: onnxruntime.
"""

from __future__ import annotations

from mimruntime.artifact import Artifact
from mimruntime.engines import ENGINES, engine_module
from mimruntime.engines.compiled import Compiled, choose_compiled
from mimruntime.errors import MissingExtraError

DEFAULT = "onnxruntime"
_GPU = ("tensorrt", "tensorrt-rtx")


def choose_engine(artifact: Artifact) -> str:
    """Return the name of the engine that `auto` stands for with this artifact on this machine.

    Raises:
        EngineError: something compiled for this machine is stale or damaged.

    """
    compiled = {name: one for name in ENGINES if (one := _compiled(artifact, name)) is not None}
    on_gpu = [name for name in _GPU if name in compiled]
    if on_gpu:
        return on_gpu[0]
    return max(compiled, key=lambda name: _rate(compiled[name]), default=DEFAULT)


def _compiled(artifact: Artifact, name: str) -> Compiled | None:
    try:
        return choose_compiled(artifact, engine_module(name))
    except MissingExtraError:  # `auto` takes what is installed
        return None


def _rate(compiled: Compiled) -> float:
    return compiled.record.tuned.images_per_second if compiled.record.tuned else 0.0
