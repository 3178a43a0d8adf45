"""An `Embeddings` of LangChain whose documents are images: a vector store of it searches by picture."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from mimruntime.batch import BatchEmbedder


class MimexportEmbeddings(Embeddings):
    """Paths of images to vectors, by an artifact."""

    def __init__(self, artifact: str) -> None:
        self._batches = BatchEmbedder(artifact)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed the images at these paths."""
        vectors: list[list[float]] = self._batches.embedder.embed(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed the image at this path."""
        return self.embed_documents([text])[0]
