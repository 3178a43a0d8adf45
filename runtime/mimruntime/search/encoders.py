"""Encoders for a search: an artifact that is opened here, or a running service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from mimruntime.decode import Source
from mimruntime.embedder import Embedder
from mimruntime.results import Description, Result
from mimruntime.search.service import ServiceEncoder


class Encoder(AbstractContextManager[Any], Protocol):
    """Embeds images; `mimruntime.Embedder` is one."""

    @property
    def has_selection(self) -> bool:
        """Whether `select` returns the weights of patches."""

    def describe(self) -> Description:
        """Return a description of what runs."""

    def stream(self, sources: Iterable[Source]) -> Iterator[Result]:
        """Yield a result per source, in order; see `Embedder.stream`."""

    def select(self, images: Iterable[Source]) -> np.ndarray:
        """Return the weight of every patch, float32 (n, gh, gw)."""


def open_encoder(name: str, **settings: Any) -> Encoder:
    """Open the artifact in the folder `name`, with `settings` of `Embedder.open`, or reach the service at a URL.

    Raises:
        MimError: as in `Embedder.open`, or the service cannot be reached.

    """
    if name.startswith(("http://", "https://")):
        return ServiceEncoder(name)
    return Embedder.open(name, **settings)


def graph_of(encoder: Encoder) -> str:
    """Return the digest of the graph, or the service's address; the cache separates vectors by it."""
    return encoder.artifact.graph_sha256 if isinstance(encoder, Embedder) else str(getattr(encoder, "url", ""))
