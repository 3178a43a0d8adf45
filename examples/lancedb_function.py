"""An embedding function of LanceDB: images in a table are embedded as they are added, and so are queries.

model = get_registry().get("mimexport").create(artifact="artifacts/mae-tiny-topk", store="fp16", dims=96)
class Picture(LanceModel):
    image: bytes = model.SourceField()
    vector: Vector(model.ndims(), model.value_type()) = model.VectorField()

Bits are searched by the number that differs: table.search(image).distance_type("hamming").
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from lancedb.embeddings import EmbeddingFunction, register
from pydantic import PrivateAttr

from mimruntime.batch import BatchEmbedder
from mimruntime.storage import Codec, codec_for

TYPES = {"fp32": pa.float32(), "fp16": pa.float16(), "bits": pa.uint8()}
"""What a column holds; LanceDB reads no int8 with a mean and a scale of one's own."""


@register("mimexport")
class MimexportFunction(EmbeddingFunction):
    """Images (paths, encoded bytes) to vectors, by an artifact.

    Attributes:
        artifact: its folder.
        store: what the table keeps. Bits need an artifact that was built with --calibrate.
        dims: keep only the first dimensions, of whitened vectors; None keeps all.

    """

    artifact: str
    store: Literal["fp32", "fp16", "bits"] = "fp32"
    dims: int | None = None
    _batches: BatchEmbedder | None = PrivateAttr(default=None)
    _codec: Codec | None = PrivateAttr(default=None)

    @property
    def embedder(self) -> Any:
        """The embedder, opened at the first use."""
        if self._batches is None:
            self._batches = BatchEmbedder(self.artifact)
        return self._batches.embedder

    @property
    def codec(self) -> Codec:
        """What encodes vectors for the table."""
        if self._codec is None:
            self._codec = codec_for(self.embedder.artifact.manifest, self.store, self.dims)
        return self._codec

    def ndims(self) -> int:
        """Return the length of a column's vector; of bits, its bytes."""
        return self.codec.width

    def value_type(self) -> pa.DataType:
        """Return the type of a column's numbers."""
        return TYPES[self.store]

    def compute_source_embeddings(self, images: Any, *_: Any, **__: Any) -> list[np.ndarray]:
        """Embed what is added; an image that cannot be read stops the call."""
        return self._encoded(images.to_pylist() if hasattr(images, "to_pylist") else list(images))

    def compute_query_embeddings(self, query: Any, *_: Any, **__: Any) -> list[np.ndarray]:
        """Embed what is asked for: one image."""
        return self._encoded([query])

    def _encoded(self, images: list[Any]) -> list[np.ndarray]:
        return list(self.codec.encode(self.embedder.embed(images)))
