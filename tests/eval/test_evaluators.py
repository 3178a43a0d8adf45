"""Every evaluator agrees with scikit-learn or the published formula, and refuses what means nothing."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from mimeval import few_shot, knn, linear_probe
from mimeval.datasets.dataset import others_of_class
from mimeval.errors import FeaturesError
from mimeval.metrics import METRICS, Task, TrainingSet
from mimeval.neighbours import nearest, similarities, unit
from mimeval.retrieval import _ranks, retrieve

CLASSIFIERS = {"knn": knn.predict, "linear probe": linear_probe.predict, "few-shot": few_shot.predict}


def blobs(seed: int = 0, images: int = 400, classes: int = 5, dim: int = 16, spread: float = 2.0):
    """Overlapping classes: training features and labels, query features and labels."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, dim))
    labels = np.resize(np.arange(classes), images) * 3 - 4
    features = centres[np.resize(np.arange(classes), images)] + spread * rng.standard_normal((images, dim))
    half = images // 2
    table = features.astype(np.float32)
    return table[:half], labels[:half], table[half:], labels[half:]


class TestNearest:
    @given(st.integers(1, 700), st.integers(1, 30), st.integers(0, 2**32 - 1), st.booleans())
    @settings(deadline=None, max_examples=60)
    def test_it_equals_a_full_sort(self, rows: int, k: int, seed: int, leave_one_out: bool) -> None:
        rng = np.random.default_rng(seed)
        gallery = rng.standard_normal((rows + leave_one_out, 4)).astype(np.float32)
        queries = gallery if leave_one_out else rng.standard_normal((3, 4)).astype(np.float32)
        cosines = unit(queries) @ unit(gallery).T
        if leave_one_out:
            np.fill_diagonal(cosines, -np.inf)
        k = min(k, rows)
        _, found = nearest(queries, gallery, k, leave_one_out=leave_one_out)
        np.testing.assert_allclose(found, -np.sort(-cosines, axis=1)[:, :k], atol=1e-6)

    def test_ten_thousand_columns_are_searched_by_blocks_and_exactly(self) -> None:
        rng = np.random.default_rng(0)
        gallery, queries = rng.standard_normal((10_007, 8)), rng.standard_normal((20, 8))
        indices, _ = nearest(queries, gallery, 20)
        exact = np.argsort(-(unit(queries) @ unit(gallery).T), axis=1, kind="stable")[:, :20]
        assert (indices == exact).all()

    def test_chunks_of_queries_share_one_table_and_the_gallery_is_not_copied(self, monkeypatch) -> None:
        monkeypatch.setattr("mimeval.neighbours._CHUNK_FLOATS", 1 << 16)
        gallery = np.random.default_rng(1).standard_normal((5000, 256), np.float32)
        expected = unit(gallery[:40]) @ unit(gallery).T
        tracemalloc.start()
        found = [(part, table.copy()) for part, table in similarities(gallery[:40], gallery)]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * expected.nbytes < gallery.nbytes
        assert len(found) == 4
        np.testing.assert_allclose(np.concatenate([table for _, table in found]), expected, atol=1e-6)

    def test_rows_of_zeros_are_similar_to_nothing(self) -> None:
        table = np.zeros((3, 4), np.float32)
        _, cosines = nearest(table, table, 2)
        assert (cosines == 0).all()


class TestKnn:
    def test_both_votes_come_from_one_search(self, monkeypatch) -> None:
        train, labels, queries, truth = blobs()
        searches = []
        monkeypatch.setattr(knn, "nearest", lambda *args: searches.append(args) or nearest(*args))
        scores = METRICS["knn"].score(Task(truth, {}), TrainingSet(train, labels), None, queries)
        assert len(searches) == 1
        assert (scores["k-NN"] == (knn.predict(train, labels, queries) == truth)).all()
        assert (scores["1-NN"] == (knn.predict(train, labels, queries, k=1) == truth)).all()

    def test_a_thousand_classes_take_no_vote_for_every_query_at_once(self) -> None:
        rng = np.random.default_rng(0)
        labels, cosines = rng.integers(0, 1000, (20_000, 5)), -np.sort(-rng.random((20_000, 5), np.float32), axis=1)
        tracemalloc.start()
        chosen = knn.vote(labels, cosines)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 << 20  # all at once: 160 MB
        for row in range(0, 20_000, 997):
            votes = np.bincount(labels[row], np.exp(cosines[row] / 0.07))
            assert chosen[row] == votes.argmax()

    def test_it_is_scikit_learns_with_softmax_weights(self) -> None:
        train, labels, queries, _ = blobs()
        peer = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine").fit(train, labels)
        assert (knn.predict(train, labels, queries) == peer.predict(queries)).all()

    def test_with_one_neighbour_it_is_the_nearest_label(self) -> None:
        train, labels, queries, _ = blobs(1)
        indices, _ = nearest(queries, train, 1)
        assert (knn.predict(train, labels, queries, k=1) == labels[indices[:, 0]]).all()

    @given(st.integers(0, 1000), st.floats(1e-3, 1e3))
    @settings(deadline=None, max_examples=25)
    def test_neither_scale_nor_order_of_the_training_images_matters(self, seed: int, scale: float) -> None:
        train, labels, queries, _ = blobs(2)
        order = np.random.default_rng(seed).permutation(len(train))
        expected = knn.predict(train, labels, queries)
        assert (knn.predict(train[order] * np.float32(scale), labels[order], queries) == expected).all()

    def test_a_small_temperature_does_not_overflow(self) -> None:
        train, labels, queries, _ = blobs(3)
        assert (knn.predict(train, labels, queries, temperature=1e-4) == knn.predict(train, labels, queries, k=1)).all()


class TestLinearProbe:
    def test_it_is_as_good_as_scikit_learns_cross_validated_regression(self) -> None:
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        train, labels, queries, truth = blobs(4, images=2000)
        peer = make_pipeline(
            StandardScaler(),
            LogisticRegressionCV(Cs=10, l1_ratios=(0,), scoring="accuracy", use_legacy_attributes=False),
        ).fit(train, labels)
        assert (linear_probe.predict(train, labels, queries) == truth).mean() > peer.score(queries, truth) - 0.01

    def test_scale_and_shift_of_a_dimension_do_not_matter(self) -> None:
        train, labels, queries, _ = blobs(5)
        scale, shift = np.geomspace(0.01, 100, train.shape[1]), np.arange(train.shape[1])
        expected = linear_probe.predict(train, labels, queries)
        moved = linear_probe.predict(train * scale + shift, labels, queries * scale + shift)
        assert (moved == expected).mean() > 0.99

    def test_the_same_features_give_the_same_labels(self) -> None:
        train, labels, queries, _ = blobs(6)
        assert (linear_probe.predict(train, labels, queries) == linear_probe.predict(train, labels, queries)).all()

    def test_one_image_a_class_is_enough_to_run(self) -> None:
        train, labels, queries, _ = blobs(7, images=10)
        assert set(linear_probe.predict(train, labels, queries)) <= set(labels)

    def test_one_class_is_refused(self) -> None:
        with pytest.raises(FeaturesError, match="two classes"):
            linear_probe.predict(np.eye(4), np.zeros(4, int), np.eye(4))


class TestFewShot:
    def test_with_every_image_as_a_shot_it_is_the_nearest_class_mean(self) -> None:
        train, labels, queries, _ = blobs(8)
        means = np.stack([unit(train)[labels == name].mean(axis=0) for name in np.unique(labels)])
        expected = np.unique(labels)[(unit(queries) @ unit(means).T).argmax(axis=1)]
        assert (few_shot.predict(train, labels, queries, shots=40, draws=2) == expected).all()

    def test_the_draws_are_the_same_for_other_features(self) -> None:
        train, labels, queries, _ = blobs(9)
        first = few_shot.predict(train, labels, queries)
        assert first.shape == (20, len(queries))
        assert (few_shot.predict(train * 2, labels, queries * 2) == first).all()

    def test_a_class_with_too_few_images_is_named(self) -> None:
        with pytest.raises(FeaturesError, match="class 1 has 1 training images, fewer than 5"):
            few_shot.predict(np.eye(6), np.array([0] * 5 + [1]), np.eye(6))


class TestRetrieval:
    def test_average_precision_is_scikit_learns(self) -> None:
        features, labels, _, _ = blobs(10)
        right = others_of_class(labels)
        found = retrieve(features, features, right.matches, right.ignored)
        cosines = unit(features) @ unit(features).T
        for row in range(0, len(labels), 17):
            others = np.arange(len(labels)) != row
            expected = average_precision_score(labels[others] == labels[row], cosines[row, others])
            assert found.average_precision[row] == pytest.approx(expected, abs=1e-6)

    @given(st.integers(2, 60), st.integers(2, 9), st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=100)
    def test_ranks_are_those_of_a_full_sort_with_equal_cosines_and_ignored_rows(
        self, rows: int, levels: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        cosines = rng.integers(0, levels, rows).astype(np.float32)
        matches, ignored = (rng.permutation(rows)[: rng.integers(0, 5)] for _ in range(2))
        order = [row for row in np.argsort(-cosines, kind="stable") if row not in ignored]
        expected = [rank for rank, row in enumerate(order) if row in matches]
        assert _ranks(cosines, matches, ignored).tolist() == expected

    def test_recall_counts_a_match_among_the_first_k(self) -> None:
        gallery = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]], np.float32)
        found = retrieve(gallery[:1], gallery, [np.array([2])], [np.array([0])])
        assert {k: bool(hit[0]) for k, hit in found.found.items()} == {1: False, 5: True, 10: True}
        assert found.average_precision[0] == 0.5

    def test_ignored_images_leave_the_ranking(self) -> None:
        gallery = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2]], np.float32)
        found = retrieve(gallery[:1], gallery, [np.array([2])], [np.array([0, 1])])
        assert found.average_precision[0] == 1

    def test_the_trapezoid_is_the_revisited_protocols(self) -> None:
        def published(ranks: list[int], matches: int) -> float:
            """compute_ap of the revisited Oxford and Paris evaluation code (github.com/filipradenovic/revisitop)."""
            total = 0.0
            for j, rank in enumerate(ranks):
                precision_0 = 1.0 if rank == 0 else j / rank
                total += (precision_0 + (j + 1) / (rank + 1)) / (2 * matches)
            return total

        gallery = unit(np.stack([np.linspace(1, 0, 12), np.linspace(0, 1, 12)], axis=1))
        found = retrieve(gallery[:1], gallery, [np.array([0, 3, 7])], trapezoid=True)
        assert found.average_precision[0] == pytest.approx(published([0, 3, 7], 3))

    def test_a_query_without_a_match_is_refused(self) -> None:
        with pytest.raises(FeaturesError, match="1 of them empty"):
            retrieve(np.eye(2), np.eye(2), [np.array([0]), np.array([], int)])


@pytest.mark.parametrize("predict", CLASSIFIERS.values(), ids=CLASSIFIERS)
class TestRefusals:
    def test_nan(self, predict) -> None:
        train, labels, queries, _ = blobs(11)
        train = train.copy()
        train[3, 0] = np.nan
        with pytest.raises(FeaturesError, match="NaN or infinity in 1 of 200 rows, first row 3"):
            predict(train, labels, queries)

    def test_another_width(self, predict) -> None:
        train, labels, queries, _ = blobs(11)
        with pytest.raises(FeaturesError, match="differ in width"):
            predict(train, labels, queries[:, :-1])

    def test_labels_of_another_table(self, predict) -> None:
        train, labels, queries, _ = blobs(11)
        with pytest.raises(FeaturesError, match="expected 200 integers"):
            predict(train, labels[:-1], queries)
