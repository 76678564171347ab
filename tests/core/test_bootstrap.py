"""Intervals over pictures hold what they promise, and say nothing where they know nothing."""

import math

import numpy as np
import pytest

from stainbridge.bootstrap import drawings, intervals, paired_difference, score_intervals
from stainbridge.capabilities import Poolable
from stainbridge.errors import ConfigError, ContractViolation


class Mean:
    """The mean over pictures that have the value."""

    def pool(self, images, weights):
        return {name: self._mean(column, weights) for name, column in images.items()}

    def _mean(self, column, weights):
        known = np.isfinite(column)
        count = weights[:, known].sum(axis=1)
        total = (weights[:, known] * column[known]).sum(axis=1)
        return np.divide(total, count, out=np.full(len(weights), np.nan), where=count > 0)


def covered(n, *, widened, draw, rounds=600, times=1000):
    """Return how often the 95 % interval of a mean of n numbers holds the true mean, 0."""
    rng, weights, hits = np.random.default_rng(7), drawings(n, times, 3), 0
    for _ in range(rounds):
        pooled = Mean().pool({"x": draw(rng, n)}, weights)
        low, high = intervals(pooled, images=n if widened else None)["x"]
        hits += low <= 0 <= high
    return hits / rounds


def test_the_stand_in_is_poolable():
    assert isinstance(Mean(), Poolable)


class TestCoverage:
    @pytest.mark.parametrize(("n", "least"), [(5, 0.89), (8, 0.91), (30, 0.92)])
    def test_an_interval_holds_the_true_mean_of_normal_values_about_95_times_in_100(self, n, least):
        assert least <= covered(n, widened=True, draw=lambda rng, n: rng.normal(size=n)) <= 0.975

    def test_plain_percentiles_of_eight_pictures_promise_too_much(self):
        assert covered(8, widened=False, draw=lambda rng, n: rng.normal(size=n)) < 0.90

    def test_a_skewed_value_is_covered_almost_as_often(self):
        assert covered(20, widened=True, draw=lambda rng, n: rng.exponential(size=n) - 1) > 0.88


class TestDrawings:
    def test_every_drawing_has_as_many_pictures_as_there_are(self):
        weights = drawings(7, 50, 0)
        assert weights.shape == (50, 7)
        assert weights.dtype == np.float64
        assert (weights.sum(axis=1) == 7).all()

    def test_one_seed_gives_the_same_drawings_and_another_gives_others(self):
        assert np.array_equal(drawings(9, 20, 1), drawings(9, 20, 1))
        assert not np.array_equal(drawings(9, 20, 1), drawings(9, 20, 2))

    def test_no_pictures_cannot_be_drawn_from(self):
        with pytest.raises(ConfigError, match="at least 1 picture, 1 drawing and a seed of at least 0; found 0, 10"):
            drawings(0, 10, 0)


class TestPairing:
    def test_pairing_narrows_the_interval_of_methods_that_find_the_same_pictures_hard(self):
        rng = np.random.default_rng(0)
        hard = rng.normal(0.6, 0.2, 25)
        a, b = {"f1": hard + 0.03}, {"f1": hard + rng.normal(0, 0.02, 25)}
        difference, low, high = paired_difference(Mean(), a, b, times=500, seed=0)["f1"]
        alone = score_intervals(Mean(), a, times=500, seed=0)["f1"]
        assert difference == pytest.approx((a["f1"] - b["f1"]).mean())
        assert 0 < low < difference < high
        assert high - low < (alone[1] - alone[0]) / 5

    def test_a_method_does_not_differ_from_itself(self):
        images = {"f1": np.random.default_rng(0).random(12)}
        assert paired_difference(Mean(), images, images, times=100, seed=0) == {"f1": (0.0, 0.0, 0.0)}

    def test_a_and_b_exchanged_change_the_sign_only(self):
        rng = np.random.default_rng(0)
        a, b = {"f1": rng.random(12)}, {"f1": rng.random(12)}
        difference, low, high = paired_difference(Mean(), a, a | b, times=300, seed=0)["f1"]
        back = paired_difference(Mean(), b, a, times=300, seed=0)["f1"]
        assert back[0] == pytest.approx(-difference)
        # The pictures are put in another order, so that other drawings are made.
        assert back[1:] == pytest.approx((-high, -low), abs=0.1)

    def test_pictures_that_one_method_lacks_are_an_error(self):
        with pytest.raises(ContractViolation, match="the same pictures on both sides; found 3 and 2"):
            paired_difference(Mean(), {"f1": np.ones(3)}, {"f1": np.ones(2)})


def test_the_order_of_the_pictures_changes_nothing():
    rng = np.random.default_rng(4)
    a, b = {"f1": rng.random(15), "n": rng.random(15)}, {"f1": rng.random(15), "n": rng.random(15)}
    order = rng.permutation(15)
    a2, b2 = ({k: v[order] for k, v in one.items()} for one in (a, b))
    assert score_intervals(Mean(), a, times=200, seed=1) == score_intervals(Mean(), a2, times=200, seed=1)
    assert paired_difference(Mean(), a, b, times=200, seed=1) == paired_difference(Mean(), a2, b2, times=200, seed=1)


class TestWhatIsNotKnown:
    @pytest.mark.parametrize("images", [[0.5], [0.5, math.nan], [0.5, 0.7] + 30 * [math.nan]])
    def test_one_picture_or_two_among_many_give_no_interval(self, images):
        low, high = score_intervals(Mean(), {"f1": np.array(images)}, times=400, seed=0)["f1"]
        assert math.isnan(low)
        assert math.isnan(high)

    def test_two_pictures_give_the_range_of_both_and_not_less(self):
        assert score_intervals(Mean(), {"f1": np.array([0.2, 0.8])}, times=100, seed=0)["f1"] == pytest.approx(
            (0.2, 0.8)
        )

    def test_one_picture_has_a_difference_without_an_interval(self):
        difference, low, high = paired_difference(Mean(), {"f1": np.array([0.7])}, {"f1": np.array([0.5])})["f1"]
        assert difference == pytest.approx(0.2)
        assert math.isnan(low)
        assert math.isnan(high)

    def test_no_pictures_give_no_values(self):
        assert score_intervals(Mean(), {"f1": np.zeros(0)}) == {}
        assert paired_difference(Mean(), {}, {}) == {}

    def test_drawings_without_a_value_are_passed_over_up_to_a_tenth(self):
        values = np.arange(100.0)
        values[:10] = np.nan
        assert intervals({"x": values})["x"] == pytest.approx(tuple(np.quantile(values[10:], (0.025, 0.975))))
        values[10] = np.inf
        assert np.isnan(intervals({"x": values})["x"]).all()

    def test_columns_of_different_lengths_are_an_error(self):
        with pytest.raises(ContractViolation, match=r"one length; found \[2, 3\]"):
            score_intervals(Mean(), {"f1": np.ones(3), "n": np.ones(2)})

    def test_a_level_of_95_is_an_error(self):
        with pytest.raises(ConfigError, match="between 0 and 1; found 95"):
            intervals({"x": np.ones(3)}, 95)
