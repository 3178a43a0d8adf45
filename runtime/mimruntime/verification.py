"""An artifact is checked again where it is deployed: its digests, and its embeddings against those of torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimruntime.artifact import Artifact
from mimruntime.engines.opening import open_for
from mimruntime.reference import check_engine

if TYPE_CHECKING:
    from mimruntime.manifest import Parity


@dataclass(frozen=True, slots=True)
class Verification:
    """What was run, and what came out.

    Attributes:
        artifact: opened, every digest checked.
        provider: the provider that ran.
        precision: of the matrix products, as they ran.
        parity: within the tolerance of the narrower of that and the graph's precision.

    """

    artifact: Artifact
    provider: str
    precision: str
    parity: Parity


def verify(
    path: str | os.PathLike[str],
    *,
    engine: str = "auto",
    provider: str | None = None,
    threads: int | None = None,
    public_key: str | Path | None = None,
) -> Verification:
    """Check the digests of the artifact at `path`, and who signed it, then its embeddings in the engine asked for.

    >>> from mimruntime import verify
    >>> verify("artifacts/tiny", engine="onnxruntime").parity.worst_cosine > 0.99999
    True

    Args:
        path: the artifact, or its folder.
        engine: what runs it, or "auto".
        provider: the hardware, by the engine's own name.
        threads: CPU threads of one run.
        public_key: of minisign, as text or in a file: refuse what this key did not sign.

    Raises:
        ArtifactError: a file was changed, or there is no usable reference.
        SignatureError: `public_key` did not sign it; see `mimruntime.Artifact.open`.
        UnknownNameError, MissingExtraError: no such engine or provider, or its library is not installed.
        OptionError: threads that the engine does not take.
        EngineError: it does not run here.
        ParityError: the embeddings are out of tolerance.

    """
    artifact = Artifact.open(path, public_key=public_key)
    with open_for(artifact, engine, provider=provider, threads=threads, check_reference=False) as opened:
        precision = opened.precision or artifact.manifest.graph.precision
        return Verification(artifact, opened.provider, precision, check_engine(artifact, opened))
