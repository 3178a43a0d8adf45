"""The records that an `Embedder` returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mimruntime.decode import Source
from mimruntime.errors import ImageError


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Result for one source.

    Attributes:
        source: the source, as given.
        vector: float32 (D,), unit length; None if there is an error.
        error: one line; None if there is a vector.

    """

    source: Source | ImageError
    vector: np.ndarray | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Description:
    """Description of an opened embedder.

    Attributes:
        name: name of the artifact.
        space: embedding space; compare only vectors with equal spaces.
        dim: length of a vector.
        engine: name and version of the engine.
        provider: the hardware it runs on.
        precision: precision of the matrix products: "fp32", "fp16", "bf16" or "int8".
        batch_sizes: the batch sizes in use, largest first.
        compiled: name of the compiled engine's folder in `engines/`; None if none is used.

    """

    name: str
    space: str
    dim: int
    engine: str
    provider: str
    precision: str
    batch_sizes: tuple[int, ...]
    compiled: str | None
