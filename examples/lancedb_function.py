"""An embedding function of LanceDB: images in a table are embedded as they are added, and so are queries.

model = get_registry().get("mimexport").create(artifact="artifacts/mae-tiny-topk")
class Picture(LanceModel):
    image: bytes = model.SourceField()
    vector: Vector(model.ndims()) = model.VectorField()
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lancedb.embeddings import EmbeddingFunction, register
from pydantic import PrivateAttr

from mimruntime.batch import BatchEmbedder


@register("mimexport")
class MimexportFunction(EmbeddingFunction):
    """Images (paths, encoded bytes) to vectors, by an artifact."""

    artifact: str
    _batches: BatchEmbedder | None = PrivateAttr(default=None)

    @property
    def embedder(self) -> Any:
        """The embedder, opened at the first use."""
        if self._batches is None:
            self._batches = BatchEmbedder(self.artifact)
        return self._batches.embedder

    def ndims(self) -> int:
        """Return the length of a vector."""
        return int(self.embedder.dim)

    def compute_source_embeddings(self, images: Any, *_: Any, **__: Any) -> list[np.ndarray]:
        """Embed what is added; an image that cannot be read stops the call."""
        return list(self.embedder.embed(images.to_pylist() if hasattr(images, "to_pylist") else list(images)))

    def compute_query_embeddings(self, query: Any, *_: Any, **__: Any) -> list[np.ndarray]:
        """Embed what is asked for: one image."""
        return list(self.embedder.embed([query]))
