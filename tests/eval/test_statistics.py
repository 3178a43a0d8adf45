"""Intervals cover what they should, tests agree with scipy and statsmodels' formulas, verdicts follow their rule."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from mimeval.statistics import (
    _random_signs,
    bootstrap_means,
    is_lower,
    judge_gain,
    mcnemar,
    mean_interval,
    paired_difference,
)


def draw(rng: np.random.Generator, images: int, *shares: float) -> list[np.ndarray]:
    """Correctness of classifiers on the same images: hard images are hard for all."""
    difficulty = rng.random(images)
    return [difficulty < share for share in shares]


class TestBootstrap:
    def test_its_spread_is_the_standard_error_of_the_mean(self) -> None:
        scores = np.random.default_rng(0).random((500, 2))
        spread = bootstrap_means(scores).std(axis=0)
        np.testing.assert_allclose(spread, scores.std(axis=0) / np.sqrt(500), rtol=0.03)

    def test_it_equals_drawing_images_one_by_one(self) -> None:
        scores = np.random.default_rng(1).random((60, 3)) < 0.3
        picks = np.random.default_rng(2).integers(0, 60, (10_000, 60))
        plain = scores[picks].mean(axis=1)
        drawn = bootstrap_means(scores)
        np.testing.assert_allclose(np.cov(drawn.T), np.cov(plain.T), atol=2e-4)
        np.testing.assert_allclose(drawn.mean(axis=0), scores.mean(axis=0), atol=2e-3)

    def test_columns_share_their_resample(self) -> None:
        scores = np.random.default_rng(3).random(100)
        draws = bootstrap_means(np.stack([scores, scores + 0.25], axis=1))
        np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 0.25, atol=1e-12)

    def test_the_seed_decides(self) -> None:
        scores = np.random.default_rng(4).random((50, 1))
        assert (bootstrap_means(scores, seed=5) == bootstrap_means(scores, seed=5)).all()
        assert (bootstrap_means(scores, seed=5) != bootstrap_means(scores, seed=6)).any()

    def test_ten_thousand_resamples_of_ten_thousand_different_scores_take_little_memory(self) -> None:
        scores = np.random.default_rng(7).random((10_000, 4))
        tracemalloc.start()
        bootstrap_means(scores)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100 << 20

    @given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(0, 3))
    def test_the_interval_holds_its_value_and_stays_within_the_scores(self, right: list[bool], seed: int) -> None:
        found = mean_interval(np.array(right), seed=seed)
        assert 0 <= found.low <= found.value <= found.high <= 1

    def test_the_interval_covers_the_truth_19_times_in_20(self) -> None:
        rng = np.random.default_rng(8)
        held = 0
        for seed in range(300):
            first, second = rng.random(400) < 0.5, rng.random(400) < 0.4
            found = paired_difference(first, second, seed=seed)
            held += found.low <= 0.1 <= found.high
        assert 0.91 <= held / 300 <= 0.98


class TestMcNemar:
    def test_it_is_the_exact_binomial_test(self) -> None:
        first = np.array([True] * 15 + [False] * 5 + [True] * 80)
        second = np.array([False] * 15 + [True] * 5 + [True] * 80)
        found = mcnemar(first, second)
        assert (found.only_first, found.only_second) == (15, 5)
        assert found.p == pytest.approx(2 * binom.cdf(5, 20, 0.5))

    def test_equal_answers_differ_with_probability_one(self) -> None:
        same = np.array([True, False])
        assert mcnemar(same, same).p == 1


class TestVerdict:
    def test_an_equal_engine_passes(self) -> None:
        head, cls = draw(np.random.default_rng(0), 10_000, 0.15, 0.10)
        judged = judge_gain(head, cls, head, cls)
        assert judged.verdict == "pass"
        assert judged.images_needed == judged.images == 10_000
        assert judged.change.low == pytest.approx(-3e-4)

    def test_half_of_the_gain_lost_fails(self) -> None:
        head, cls, half = draw(np.random.default_rng(1), 10_000, 0.15, 0.10, 0.125)
        judged = judge_gain(head, cls, half, cls)
        assert judged.verdict == "fail"
        assert judged.gain.value == pytest.approx(judged.reference.value / 2, abs=0.005)

    def test_a_loss_within_the_margin_passes(self) -> None:
        head, cls, less = draw(np.random.default_rng(2), 10_000, 0.15, 0.10, 0.148)
        assert judge_gain(head, cls, less, cls, margin=0.01).verdict == "pass"

    def test_fifty_images_decide_nothing_even_where_engines_agree(self) -> None:
        head, cls = draw(np.random.default_rng(3), 50, 0.6, 0.2)
        judged = judge_gain(head, cls, head, cls)
        assert judged.reference.low > 0
        assert judged.verdict == "undecided"
        assert judged.images_needed is not None
        assert 600 <= judged.images_needed <= 620  # 3 / n below half a point

    def test_a_loss_must_be_clearer_the_more_rows_are_judged_together(self) -> None:
        head, cls = draw(np.random.default_rng(9), 2000, 0.6, 0.2)
        worse = head.copy()
        worse[np.flatnonzero(head)[:6]] = False
        assert judge_gain(head, cls, worse, cls, margin=0.0).verdict == "fail"
        assert judge_gain(head, cls, worse, cls, margin=0.0, rows=1000).verdict == "undecided"
        assert is_lower(worse, head)
        assert not is_lower(worse, head, rows=1000)

    def test_a_few_queries_that_are_lost_are_not_outvoted_by_many_that_gain_next_to_nothing(self) -> None:
        rng = np.random.default_rng(4)
        precision = rng.random(800)
        now = np.clip(precision + rng.choice([-1e-4, 1e-4], 800), 0, 1)
        assert not is_lower(now, precision)
        now[:40] = 0.0
        assert is_lower(now, precision, rows=25)
        assert judge_gain(precision, np.zeros(800), now, np.zeros(800), margin=0.01, rows=25).verdict == "fail"

    def test_random_signs_are_the_sign_test_where_all_changes_are_alike(self) -> None:
        change = np.array([-1.0] * 9 + [0.0] * 50 + [1.0] * 2)
        exact = _random_signs(change, 0)
        assert exact == pytest.approx((1 + 11 + 55) / 2**11)
        assert _random_signs(change * (1 + 1e-9 * np.arange(61)), 0) == pytest.approx(exact, rel=0.05)

    def test_few_images_that_differ_show_no_more_than_a_coin_would(self) -> None:
        cls, head = (np.arange(600) < right for right in (60, 120))
        lucky = cls | (np.arange(600) >= 591)
        judged = judge_gain(head, cls, head, lucky, margin=0.01, rows=60)
        assert judged.change.high < -0.005
        assert judged.verdict == "undecided"  # 9 of 9: 1 in 512, and of 60 rows 1 in 2,400 is asked for
        assert judge_gain(head, cls, head, lucky, margin=0.01).verdict == "fail"

    def test_many_rows_that_share_a_baseline_are_rarely_red_for_a_loss_within_the_margin(self) -> None:
        """As in the gate: what one [cls] wins, 0.5 points more than the heads here, every row loses."""
        rng = np.random.default_rng(10)
        red = 0
        for seed in range(60):
            cls, head = draw(rng, 600, 0.10, 0.16)
            turned = rng.random(600) < 0.015
            found = [
                judge_gain(head, cls, head ^ (rng.random(600) < 0.01), cls ^ turned, margin=0.01, rows=60, seed=seed)
                for _ in range(12)
            ]
            red += any(judged.verdict == "fail" for judged in found)
        assert red <= 3

    def test_so_must_a_loss_in_torch(self) -> None:
        cls, head = (np.arange(100) < right for right in (50, 44))
        assert judge_gain(head, cls, head, cls).verdict == "fail"
        assert judge_gain(head, cls, head, cls, rows=1000).verdict == "undecided"

    def test_the_images_it_asks_for_suffice(self) -> None:
        rng = np.random.default_rng(4)
        head, cls = rng.random(2000) < 0.12, rng.random(2000) < 0.10
        judged = judge_gain(head, cls, head, cls)
        assert judged.verdict == "undecided"
        assert judged.images_needed is not None
        more = -(-2 * judged.images_needed // 2000)
        assert judge_gain(*[np.tile(scores, more) for scores in (head, cls, head, cls)]).verdict == "pass"

    def test_so_do_those_that_would_show_a_loss(self) -> None:
        cls, head = (np.arange(1000) < right for right in (200, 400))
        engine = head & (np.arange(1000) >= 4)
        judged = judge_gain(head, cls, engine, cls, margin=0.002, rows=10)
        assert judged.verdict == "undecided"
        assert judged.images_needed is not None
        more = -(-judged.images_needed // 1000)
        again = [np.tile(scores, more) for scores in (head, cls, engine, cls)]
        assert judge_gain(*again, margin=0.002, rows=10).verdict == "fail"
        assert judge_gain(*[scores[: -1000 * (more // 2)] for scores in again], margin=0.002, rows=10).verdict != "fail"

    def test_a_loss_in_torch_is_waited_for_too(self) -> None:
        cls, head = (np.arange(300) < right for right in (60, 58))
        judged = judge_gain(head, cls, head, cls, margin=0.05)
        assert judged.verdict == "undecided"
        assert judged.images_needed is not None
        more = -(-judged.images_needed // 300)
        assert judge_gain(*[np.tile(scores, more) for scores in (head, cls, head, cls)], margin=0.05).verdict == "fail"

    def test_a_gain_that_torch_leaves_open_needs_more_images_than_torch_saw(self) -> None:
        rng = np.random.default_rng(4)
        head, cls = rng.random(2000) < 0.12, rng.random(2000) < 0.10
        few = [scores[:400] for scores in (head, cls, head, cls)]
        judged = judge_gain(*few, margin=0.02, established_on=(head, cls))
        assert (judged.images, judged.reference_images) == (400, 2000)
        assert judged.reference.low <= 0
        assert judged.images_needed is not None
        assert judged.images_needed > 2000

    def test_equal_scores_are_decided_by_no_number_of_images(self) -> None:
        cls = np.arange(1000) < 200
        assert judge_gain(cls, cls, cls, cls).images_needed is None

    def test_no_gain_in_torch_is_never_a_pass(self) -> None:
        head, cls = draw(np.random.default_rng(5), 5000, 0.10, 0.10)
        judged = judge_gain(head, cls, head, cls)
        assert judged.verdict == "undecided"
        assert "nothing to carry over" in judged.reason
        assert judged.images_needed is None

    def test_an_aggregator_that_loses_fails(self) -> None:
        head, cls = draw(np.random.default_rng(6), 5000, 0.08, 0.10)
        assert judge_gain(head, cls, head, cls).verdict == "fail"
