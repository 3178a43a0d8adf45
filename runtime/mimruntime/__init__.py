"""Turn images into vectors with an artifact built by mimexport: numpy, Pillow and one engine, never torch.

Names are imported on first use: numpy and Pillow alone take longer than `import mimruntime` may.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mimruntime.errors import MimError

if TYPE_CHECKING:
    from mimruntime.artifact import Artifact
    from mimruntime.batch import BatchEmbedder
    from mimruntime.embedder import Embedder
    from mimruntime.engines.compilation import compile_engine
    from mimruntime.results import Result
    from mimruntime.vectors import Vectors, read_vectors
    from mimruntime.verification import Verification, verify

__all__ = [
    "Artifact", "BatchEmbedder", "Embedder", "MimError", "Result", "Vectors", "Verification", "compile_engine",
    "read_vectors", "verify",
]  # fmt: skip

_HOMES = {
    "Artifact": "mimruntime.artifact",
    "BatchEmbedder": "mimruntime.batch",
    "Embedder": "mimruntime.embedder",
    "Result": "mimruntime.results",
    "Vectors": "mimruntime.vectors",
    "Verification": "mimruntime.verification",
    "compile_engine": "mimruntime.engines.compilation",
    "read_vectors": "mimruntime.vectors",
    "verify": "mimruntime.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mimruntime' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
