"""Searches over what an index stores find what they say, and lose what they must."""

from __future__ import annotations

import numpy as np
import pytest

from mimeval.neighbours import nearest, overlap, unit
from mimeval.stored import WAYS, k_nn_correct, round_tf32, searches
from mimruntime.storage import codec_of, measure_statistics


@pytest.fixture(scope="module")
def parallel() -> np.ndarray:
    """Vectors of cosine 0.9999 to each other, as those of [cls]."""
    random = np.random.default_rng(0)
    return unit(random.standard_normal(64) + 0.01 * random.standard_normal((1500, 64)))


def test_every_way_finds_neighbours_and_costs_what_it_must(parallel: np.ndarray) -> None:
    statistics = measure_statistics(parallel[:256])
    ways = searches({store: codec_of(statistics, store, 64, "s") for store in ("fp16", "int8", "bits")})
    queries, gallery = parallel[:300], parallel[300:]
    wanted = nearest(queries, gallery, 10)[0]
    found = {name: search(queries, gallery, 20) for name, search in ways.items()}
    kept = {name: float(overlap(indices[:, :10], wanted).mean()) for name, (indices, _) in found.items()}
    for indices, similarities in found.values():
        assert indices.shape == similarities.shape == (300, 20)
        assert (np.diff(similarities, axis=1) <= 1e-6).all()
    assert kept["fp32"] > 0.99  # of equal similarities any may come first
    assert min(kept["int8"], kept["fp16"]) > 0.9
    assert kept["bits, rescored by int8"] > 0.65 > kept["bits, rescored"] > kept["bits"] > 0.15
    assert kept["TF32"] < 0.5


def test_tf32_keeps_ten_bits_and_rounds_ties_to_even() -> None:
    step = np.float32(2**-10)
    given = np.array([1, 1 + step / 2, 1 + 1.5 * step, 1 + 0.51 * step, -(1 + 1.5 * step), 0], np.float32)
    assert round_tf32(given).tolist() == [1, 1, 1 + 2 * step, 1 + step, -(1 + 2 * step), 0]


def test_k_nn_is_judged_among_vectors_as_they_are_stored() -> None:
    """Two classes that differ by little among vectors that point almost the same way, as those of [cls]."""
    random = np.random.default_rng(0)
    labels = np.arange(1200) % 2
    classes = random.standard_normal((2, 64))
    vectors = unit(random.standard_normal(64) + 0.0003 * (classes[labels] + random.standard_normal((1200, 64))))
    found = k_nn_correct(WAYS, vectors[:900], labels[:900], vectors[900:], labels[900:])
    right = {way: float(correct.mean()) for way, correct in found.items()}
    assert list(found) == list(WAYS)
    assert right["int8"] > 0.95
    assert right["tf32"] < 0.9


def test_mean_and_scale_are_those_of_all_classes_where_training_images_are_sorted_by_class() -> None:
    """Classes lie along a line, each narrow: by the statistics of the first alone, all others are cut off at one place."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 300)
    vectors = np.eye(64)[0] + 0.2 * labels[:, None] * np.eye(64)[1] + 0.001 * random.standard_normal((1200, 64))
    found = k_nn_correct(["int8"], vectors, labels, vectors[::10], labels[::10])
    assert found["int8"].mean() > 0.95
