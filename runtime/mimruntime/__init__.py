"""Turn images into vectors with an artifact built by mimexport: numpy, Pillow and one engine, never torch.

Names are imported on first use: numpy and Pillow alone take longer than `import mimruntime` may.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mimruntime.errors import MimError

if TYPE_CHECKING:
    from mimruntime.artifact import Artifact
    from mimruntime.embedder import Embedder, Result
    from mimruntime.vectors import Vectors, read_vectors

__all__ = ["Artifact", "Embedder", "MimError", "Result", "Vectors", "read_vectors"]

_HOMES = {
    "Artifact": "mimruntime.artifact",
    "Embedder": "mimruntime.embedder",
    "Result": "mimruntime.embedder",
    "Vectors": "mimruntime.vectors",
    "read_vectors": "mimruntime.vectors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mimruntime' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
