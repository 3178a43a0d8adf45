"""Measure whether an engine reproduces the reference embeddings at every batch size and in every run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mimruntime.errors import ParityError
from mimruntime.manifest import Parity, Precision

BATCHES = (1, 3, 8)
WORST_COSINE: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.999, "bf16": 0.98, "int8": 0.9}
"""Smallest accepted cosine. bf16 and int8 may select other patches, so their limits are lower; see `Conversion` for the loss."""
BATCH_INVARIANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2, "int8": 1e-4}

Run = Callable[[np.ndarray], np.ndarray]
"""Function from pixels, uint8 (B, H, W, 3), to embeddings, float32 (B, D)."""


def measure(run: Run, images: np.ndarray, reference: np.ndarray, *, engine: str, largest: int | None = None) -> Parity:
    """Embed `images` at every size of `BATCHES` and compare with `reference`.

    Images are repeated if there are fewer than a batch holds, so that every batch is full.

    Args:
        run: one call of the engine.
        images: uint8 (n, H, W, 3), n ≥ 1.
        reference: float32 (n, D).
        engine: name of the engine, for the record.
        largest: largest batch of the engine, or None; larger batches are reduced to it.

    Raises:
        ParityError: the output has another shape or dtype, or contains NaN or infinity.

    """
    batches = tuple(dict.fromkeys(min(batch, largest or batch) for batch in BATCHES))
    alone, _ = _embed(run, images, 1, reference.shape[1])
    cosines, differences, variations = [], [], []
    for batch in batches:
        embeddings, order = _embed(run, images, batch, reference.shape[1])
        cosines.append(_cosines(embeddings, reference[order]))
        differences.append(np.abs(embeddings - reference[order]).max())
        variations.append(np.abs(embeddings - alone[order]).max())
    return Parity(
        engine=engine,
        images=len(images),
        batches=batches,
        worst_cosine=float(np.concatenate(cosines).min()),
        median_cosine=float(np.median(np.concatenate(cosines))),
        worst_abs_diff=float(max(differences)),
        batch_invariance=float(max(variations)),
        deterministic=_is_deterministic(run, images, max(batches)),
    )


def check_near(embeddings: np.ndarray, reference: np.ndarray, precision: Precision, *, engine: str) -> None:
    """Check the embeddings of one run against the reference.

    Args:
        embeddings: output of an engine, expected to be float32 (n, D).
        reference: float32 (n, D).
        precision: precision that sets the tolerance.
        engine: name for the error message.

    Raises:
        ParityError: the embeddings exceed the tolerance, have another shape or dtype, or are not finite.

    """
    worst = float(_cosines(_checked(embeddings, *reference.shape), reference).min())
    if not worst >= WORST_COSINE[precision]:
        raise ParityError(
            f"{engine} does not give the vectors of this artifact: worst cosine to the reference {worst:.7f}, at least"
            f" {WORST_COSINE[precision]} is expected in {precision}; delete it and compile again, or see: mimexport verify"
        )


def widest(*precisions: str | None) -> Precision:
    """Return the precision with the widest tolerance, ignoring None."""
    known: list[Precision] = [name for name in WORST_COSINE if name in precisions]
    return min(known, key=WORST_COSINE.__getitem__)


def check(parity: Parity, precision: Precision) -> None:
    """Check measured parity against the tolerances of a precision.

    Raises:
        ParityError: a figure exceeds its tolerance; the message has both.

    """
    least, most = WORST_COSINE[precision], BATCH_INVARIANCE[precision]
    # `not a >= b` is also true for NaN.
    if not parity.worst_cosine >= least:
        raise ParityError(
            f"{parity.engine}: embeddings differ from the reference: worst cosine {parity.worst_cosine:.7f},"
            f" at least {least} is expected in {precision}"
        )
    if not parity.batch_invariance <= most:
        raise ParityError(
            f"{parity.engine}: an image's embedding changes with its batch by up to {parity.batch_invariance:.2e},"
            f" at most {most:.0e} is tolerated in {precision}"
        )
    if not parity.deterministic:
        raise ParityError(f"{parity.engine}: two runs on the same batch gave different bytes")


def _embed(run: Run, images: np.ndarray, batch: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (m, D) and the image index of each (m,), computed in full batches."""
    rounds = -(-len(images) // batch)
    order = np.resize(np.arange(len(images)), rounds * batch)
    rows = [_checked(run(images[part]), batch, dim) for part in np.split(order, rounds)]
    return np.concatenate(rows), order


def _checked(embeddings: np.ndarray, batch: int, dim: int) -> np.ndarray:
    if embeddings.dtype != np.float32 or embeddings.shape != (batch, dim):
        raise ParityError(
            f"at batch {batch} the output is {embeddings.dtype} {embeddings.shape}, expected float32 {(batch, dim)}"
        )
    if not np.isfinite(embeddings).all():
        raise ParityError(f"at batch {batch} the output holds NaN or infinity")
    return embeddings


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    if not norms.all():
        raise ParityError("an embedding is zero, so it has no direction to compare")
    return np.asarray(np.minimum((a * b).sum(axis=1) / norms, 1.0))


def _is_deterministic(run: Run, images: np.ndarray, size: int) -> bool:
    batch = images[np.resize(np.arange(len(images)), size)]
    return run(batch).tobytes() == run(batch).tobytes()
