"""Whether an engine gives the reference embeddings, at every batch size and each time, measured with numpy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mimruntime.errors import ParityError
from mimruntime.manifest import Parity, Precision

BATCHES = (1, 3, 8)
WORST_COSINE: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.999, "bf16": 0.98, "int8": 0.9}
"""Below fp16 the order of patches may change, so that others are selected: the figures of a conversion say how much."""
BATCH_INVARIANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2, "int8": 1e-4}

Run = Callable[[np.ndarray], np.ndarray]
"""Pixels, uint8 (B, H, W, 3), to embeddings, float32 (B, D)."""


def measure(run: Run, images: np.ndarray, reference: np.ndarray, *, engine: str, largest: int | None = None) -> Parity:
    """Embed `images` at every size of `BATCHES` and compare with `reference`.

    Where there are fewer images than a batch holds, they repeat, so that each size is run in full.

    Args:
        run: one call of the engine.
        images: uint8 (n, H, W, 3), n ≥ 1.
        reference: float32 (n, D).
        engine: name that is recorded.
        largest: the most images of one run, where the engine has a limit; larger batches are that large.

    Raises:
        ParityError: an output of another shape or type, or one that holds NaN or infinity.

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
    """Judge the embeddings of one run.

    Args:
        embeddings: what an engine gave, float32 (n, D) where it is right.
        reference: float32 (n, D).
        precision: whose tolerance holds.
        engine: for the text of the error.

    Raises:
        ParityError: out of tolerance, of another shape or type, or not finite.

    """
    worst = float(_cosines(_checked(embeddings, *reference.shape), reference).min())
    if not worst >= WORST_COSINE[precision]:
        raise ParityError(
            f"{engine} does not give the vectors of this artifact: worst cosine to the reference {worst:.7f}, at least"
            f" {WORST_COSINE[precision]} is expected in {precision}; delete it and compile again, or see: mimexport verify"
        )


def widest(*precisions: str | None) -> Precision:
    """Return which of these, None aside, is held to the widest tolerance."""
    known: list[Precision] = [name for name in WORST_COSINE if name in precisions]
    return min(known, key=WORST_COSINE.__getitem__)


def check(parity: Parity, precision: Precision) -> None:
    """Judge what was measured.

    Raises:
        ParityError: out of tolerance; one line with the figure and its limit.

    """
    least, most = WORST_COSINE[precision], BATCH_INVARIANCE[precision]
    # Written so that NaN, which compares false with everything, fails.
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
    """Return embeddings (m, D) and the image each belongs to (m,), from full batches only."""
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
