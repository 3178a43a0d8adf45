"""What an `Embedder` says: of each source what became of it, and of itself what really runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mimruntime.decode import Source


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What became of one source.

    Attributes:
        source: as it was given.
        vector: float32 (D,), unit length; None where the source is no image.
        error: one line; None where there is a vector.

    """

    source: Source
    vector: np.ndarray | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Description:
    """What really runs.

    Attributes:
        name: of the artifact.
        space: vectors are comparable only where this is equal.
        dim: length of a vector.
        engine: name and version.
        provider: the hardware behind it.
        precision: of the matrix products: "fp32", "fp16", "bf16" or "int8".
        batch_sizes: the sizes that are run, largest first.
        compiled: the folder in `engines/` it was opened from; None: nothing was compiled for this machine.

    """

    name: str
    space: str
    dim: int
    engine: str
    provider: str
    precision: str
    batch_sizes: tuple[int, ...]
    compiled: str | None
