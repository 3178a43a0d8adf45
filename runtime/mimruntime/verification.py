"""Verify a deployed artifact: its digests, its signature, and its embeddings against torch's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimruntime.artifact import Artifact
from mimruntime.engines.opening import open_for, precision_of
from mimruntime.reference import check_engine

if TYPE_CHECKING:
    from mimruntime.manifest import Parity


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of `verify`.

    Attributes:
        artifact: the opened artifact with checked digests.
        provider: the hardware that ran it.
        precision: precision of the matrix products in this run.
        parity: measured parity; it is within the tolerance of the narrower of graph and engine precision.

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
    """Verify the digests and the signature of the artifact at `path`, and its embeddings in an engine.

    >>> from mimruntime import verify
    >>> verify("artifacts/tiny", engine="onnxruntime").parity.worst_cosine > 0.99999
    True

    Args:
        path: the artifact, or its folder.
        engine: a name in `mimruntime.engines.ENGINES`, or "auto".
        provider: the hardware, by the engine's own name.
        threads: CPU threads of one run.
        public_key: a minisign public key, as text or file; require a signature by this key.

    Raises:
        ArtifactError: a file was changed, or the reference is unusable.
        SignatureError: `public_key` did not sign it; see `mimruntime.Artifact.open`.
        UnknownNameError, MissingExtraError: there is no such engine or provider, or its library is not installed.
        OptionError: the engine does not accept `threads`.
        EngineError: the engine does not run on this machine.
        ParityError: the embeddings exceed the tolerance.

    """
    artifact = Artifact.open(path, public_key=public_key)
    with open_for(artifact, engine, provider=provider, threads=threads, check_reference=False) as opened:
        precision = precision_of(artifact, opened)
        return Verification(artifact, opened.provider, precision, check_engine(artifact, opened))
