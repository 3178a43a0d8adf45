"""The reference of an artifact (images and torch embeddings), and parity checks against it."""

from __future__ import annotations

import numpy as np

from mimruntime import parity
from mimruntime.artifact import Artifact
from mimruntime.engines.base import EMBEDDING, Engine
from mimruntime.errors import ArtifactError
from mimruntime.manifest import Parity

FEW = 2
"""Number of images to compare when an engine is opened."""


def load_reference(artifact: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 (n, H, W, 3), and torch's embeddings of them, float32 (n, D).

    Raises:
        ArtifactError: `reference.npz` is missing, damaged or does not fit the manifest.

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


def compare_few(artifact: Artifact, engine: Engine) -> None:
    """Compare the vectors of `FEW` reference images in one run, to detect an engine of another artifact.

    Raises:
        ArtifactError: the reference is unusable.
        ParityError: the vectors exceed the tolerance of the narrower of graph and engine precision.
        EngineError: the run failed.

    """
    if artifact.reference.name not in artifact.manifest.files:
        raise ArtifactError(f"{artifact.path} contains no reference to compare with; open it with --no-check-reference")
    images, embeddings = load_reference(artifact)
    count = min(FEW, len(images), engine.largest_batch or FEW)
    precision = parity.widest(artifact.manifest.graph.precision, engine.precision)
    name = engine.compiled or engine.name
    parity.check_near(engine.run(images[:count])[EMBEDDING], embeddings[:count], precision, engine=name)


def check_engine(artifact: Artifact, engine: Engine) -> Parity:
    """Measure and check the parity of `engine` with torch on all reference images.

    Raises:
        ArtifactError: the reference is unusable.
        ParityError: a figure exceeds the tolerance of the narrower of graph and engine precision.
        EngineError: a run failed.

    """
    images, embeddings = load_reference(artifact)
    figures = parity.measure(
        lambda pixels: engine.run(pixels)[EMBEDDING],
        images,
        embeddings,
        engine=engine.name,
        largest=engine.largest_batch,
    )
    parity.check(figures, parity.widest(artifact.manifest.graph.precision, engine.precision))
    return figures
