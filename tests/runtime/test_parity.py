"""Parity measures what it says, and each way of being out of tolerance is caught."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from mimruntime import parity
from mimruntime.errors import ParityError

if TYPE_CHECKING:
    from mimruntime.manifest import Parity

RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((4 * 4 * 3, 5)).astype(np.float32)
IMAGES = RNG.integers(0, 256, (5, 4, 4, 3), np.uint8)


def exact(pixels: np.ndarray) -> np.ndarray:
    """Embed row by row, so that a batch cannot change a row."""
    rows = np.stack([row.reshape(-1).astype(np.float32) @ WEIGHTS for row in pixels])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


REFERENCE = exact(IMAGES)


def measured(run: parity.Run) -> Parity:
    return parity.measure(run, IMAGES, REFERENCE, engine="toy")


def test_an_exact_engine_has_no_difference_and_passes() -> None:
    result = measured(exact)
    assert result.images == 5
    assert result.batches == (1, 3, 8)
    assert result.worst_cosine == pytest.approx(1, abs=1e-7)
    assert (result.worst_abs_diff, result.batch_invariance, result.deterministic) == (0, 0, True)
    parity.check(result, "fp32")


def test_every_batch_size_is_run_in_full_though_there_are_fewer_images() -> None:
    sizes = []
    measured(lambda pixels: (sizes.append(len(pixels)), exact(pixels))[1])
    assert set(sizes) == {1, 3, 8}


def test_one_wrong_image_at_one_batch_size_shows_in_the_worst_not_in_the_median() -> None:
    def run(pixels: np.ndarray) -> np.ndarray:
        rows = exact(pixels)
        if len(pixels) == 8:
            rows[7] = -rows[7]
        return rows

    result = measured(run)
    assert result.worst_cosine == pytest.approx(-1)
    assert result.median_cosine == pytest.approx(1)
    assert result.worst_abs_diff > 0.1
    with pytest.raises(ParityError, match=r"^toy: .*worst cosine -1\.0000000, at least 0\.99999 is expected in fp32$"):
        parity.check(result, "fp32")


def test_a_vector_that_changes_with_its_batch_mates_is_caught() -> None:
    result = measured(lambda pixels: exact(pixels) + np.float32(1e-3) * (len(pixels) == 3))
    assert result.batch_invariance == pytest.approx(1e-3, rel=1e-3)
    with pytest.raises(ParityError, match=r"changes with its batch by up to 1\.00e-03, at most 1e-04"):
        parity.check(result, "fp32")
    parity.check(result, "fp16")


def test_a_run_that_differs_from_the_last_is_caught() -> None:
    calls = iter(range(1000))
    result = measured(lambda pixels: exact(pixels) + np.float32(1e-6) * next(calls))
    assert not result.deterministic
    with pytest.raises(ParityError, match="two runs on the same batch gave different bytes"):
        parity.check(msgspec.structs.replace(result, batch_invariance=0.0), "fp32")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_while_measuring(value: float) -> None:
    with pytest.raises(ParityError, match="at batch 1 the output holds NaN or infinity"):
        measured(lambda pixels: np.full((len(pixels), 5), value, np.float32))


def test_a_zero_vector_is_refused() -> None:
    with pytest.raises(ParityError, match="an embedding is zero"):
        measured(lambda pixels: np.zeros((len(pixels), 5), np.float32))


@pytest.mark.parametrize("run", [lambda pixels: exact(pixels)[:, :4], lambda pixels: exact(pixels).astype(np.float64)])
def test_another_shape_or_type_is_refused(run: parity.Run) -> None:
    with pytest.raises(ParityError, match=r"expected float32 \(1, 5\)"):
        measured(run)


@pytest.mark.parametrize("field", ["worst_cosine", "batch_invariance"])
def test_nan_in_the_figures_is_out_of_tolerance(field: str) -> None:
    with pytest.raises(ParityError):
        parity.check(msgspec.structs.replace(measured(exact), **{field: float("nan")}), "fp32")


@pytest.mark.parametrize(("precision", "cosine", "passes"), [
    ("fp32", 0.99999, True), ("fp32", 0.999989, False), ("fp16", 0.999, True), ("fp16", 0.9989, False),
])  # fmt: skip
def test_the_limits_of_cosine_are_those_of_the_precision(precision: str, cosine: float, passes: bool) -> None:
    result = msgspec.structs.replace(measured(exact), worst_cosine=cosine)
    if passes:
        parity.check(result, precision)
    else:
        with pytest.raises(ParityError):
            parity.check(result, precision)


@pytest.mark.parametrize(
    ("precisions", "expected"),
    [
        (("fp32", "bf16"), "bf16"),
        (("bf16", "fp16"), "bf16"),
        ((None, "fp32"), "fp32"),
        (("int8", None, "bf16"), "int8"),
    ],
)
def test_the_widest_tolerance_is_that_of_the_narrowest_precision(
    precisions: tuple[str | None, ...], expected: str
) -> None:
    assert parity.widest(*precisions) == expected


def test_an_engine_for_few_images_is_measured_at_what_it_runs() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), np.uint8)

    def run(pixels: np.ndarray) -> np.ndarray:
        assert len(pixels) <= 4
        return pixels.reshape(len(pixels), -1).astype(np.float32)

    found = parity.measure(run, images, images.reshape(5, -1).astype(np.float32), engine="small", largest=4)
    assert found.batches == (1, 3, 4)
    assert found.deterministic
