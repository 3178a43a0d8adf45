"""An artifact is checked again where it is deployed: its digests, and its embeddings against those of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimruntime import parity
from mimruntime.artifact import Artifact
from mimruntime.engines import open_for
from mimruntime.reference import load_reference

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
    with open_for(artifact, engine, provider=provider, threads=threads) as opened:
        measured = parity.measure(
            lambda pixels: opened.run(pixels)["embedding"],
            images,
            embeddings,
            engine=opened.name,
            largest=opened.largest_batch,
        )
        parity.check(measured, parity.widest(artifact.manifest.graph.precision, opened.precision))
        return Verification(artifact, opened.provider, measured)
