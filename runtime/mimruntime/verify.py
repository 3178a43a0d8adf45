"""An artifact is checked again where it is deployed: its digests, and its embeddings against those of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mimruntime import parity
from mimruntime.artifact import Artifact
from mimruntime.engines import open_engine
from mimruntime.errors import ArtifactError

if TYPE_CHECKING:
    from mimruntime.manifest import Parity


@dataclass(frozen=True, slots=True)
class Verification:
    """What was run, and what came out.

    Attributes:
        artifact: opened, every digest checked.
        provider: the provider that ran.
        parity: within the tolerance of the graph's precision.

    """

    artifact: Artifact
    provider: str
    parity: Parity


def verify(
    path: str | Path, *, engine: str = "auto", provider: str | None = None, threads: int | None = None
) -> Verification:
    """Check the digests of the artifact at `path`, then its embeddings in the engine asked for.

    Raises:
        ArtifactError: a file was changed, or there is no usable reference.
        EngineError: the engine or provider does not run here.
        ParityError: the embeddings are out of tolerance.

    """
    artifact = Artifact.open(path)
    images, embeddings = load_reference(artifact)
    with open_engine(engine, artifact.graph, provider=provider, threads=threads) as opened:
        measured = parity.measure(
            lambda pixels: opened.run(pixels)["embedding"], images, embeddings, engine=opened.name
        )
        parity.check(measured, artifact.manifest.graph.precision)
        return Verification(artifact, opened.provider, measured)


def load_reference(artifact: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 (n, H, W, 3), and torch's embeddings of them, float32 (n, D).

    Raises:
        ArtifactError: `reference.npz` is missing, broken or does not fit the manifest.

    """
    size, dim = artifact.manifest.preprocess.size, artifact.manifest.embedding.dim
    try:
        with artifact.reference.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            images, embeddings = arrays["images"], arrays["embedding"]
    except Exception as error:  # zip, npy and zlib each have their own types
        raise ArtifactError(f"{artifact.reference} cannot be read ({error}); build the artifact again") from error
    fits = images.ndim == 4 and images.shape[1:] == (size, size, 3) and embeddings.shape == (len(images), dim)
    if not (fits and len(images) and images.dtype == np.uint8 and embeddings.dtype == np.float32):
        raise ArtifactError(
            f"{artifact.reference} holds images {images.dtype} {images.shape} and embeddings {embeddings.dtype}"
            f" {embeddings.shape}; expected uint8 (n, {size}, {size}, 3) and float32 (n, {dim})"
        )
    return images, embeddings
