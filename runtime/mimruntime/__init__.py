"""Turn images into vectors with an artifact built by mimexport. Needs numpy, Pillow and one engine, but not torch.

Names are imported on first use, so that `import mimruntime` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimruntime.errors import MimError
from mimruntime.lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
