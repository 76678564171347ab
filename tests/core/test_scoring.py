"""Scores against cases worked by hand, and intervals against populations whose truth is known."""

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainbridge.errors import ConfigError, ContractViolation
from stainbridge.interfaces import GRADE_CUTS
from stainbridge.records import Nuclei
from stainbridge.resampling import MIN_BLOCKS
from stainbridge.scoring import grades, rescore, score, sensitivity

HOW = {"area_mm2": 0.5, "mpp": 0.25}


def nuclei(positive, grade=None, *, y=None, x=None, p=None, dab=None):
    """Build a table from calls and grades; everything else is filled in."""
    positive = np.asarray(positive, bool)
    zero = np.zeros(len(positive))
    dab = zero if dab is None else dab
    columns = {
        "label": np.arange(1, len(positive) + 1),
        "y": zero if y is None else y,
        "x": zero if x is None else x,
        "area_um2": zero + 40,
        **dict.fromkeys(("y0", "x0", "y1", "x1", "clipped"), zero),
        "p_positive": positive if p is None else p,
        "positive": positive,
        "grade": positive if grade is None else grade,
        "dab_od_mean": dab,
        "haematoxylin_od_mean": zero + 0.3,
    }
    return Nuclei.from_columns(columns)


def calls(n_positive, n_total):
    return np.arange(n_total) < n_positive


def test_ten_nuclei_score_as_worked_by_hand():
    # 4 negative, 3 weak, 2 moderate, 1 strong.
    table = nuclei([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    scores = score(table, **HOW)
    assert scores["counts"] == {"total": 10, "positive": 6, "negative": 4, "grade": {"0": 4, "1": 3, "2": 2, "3": 1}}
    assert scores["percent_positive"] == 60
    assert scores["h_score"] == 10 * (3 * 1 + 2 * 2 + 1 * 3)
    # 60 % lies between 1/3 and 2/3: 4; the mean grade of the positive ones is 10/6: 2.
    assert scores["allred"] == {"proportion": 4, "intensity": 2, "total": 6}
    assert scores["density_per_mm2"] == {"total": 20, "positive": 12, "negative": 8}


@pytest.mark.parametrize(("grade", "expected"), [(0, 0), (3, 300)])
def test_h_score_runs_from_0_to_300(grade, expected):
    assert score(nuclei([grade > 0] * 7, [grade] * 7), **HOW)["h_score"] == expected


def test_a_negative_nucleus_adds_nothing_to_the_h_score_and_a_pale_positive_one_counts_as_weak():
    scores = score(nuclei([False, True], [3, 0]), **HOW)
    assert scores["counts"]["grade"] == {"0": 1, "1": 1, "2": 0, "3": 0}
    assert scores["h_score"] == 50


@pytest.mark.parametrize(
    ("positive", "total", "proportion"),
    [
        (0, 300, 0),
        (2, 300, 1),
        (3, 300, 2),  # exactly 1/100
        (30, 300, 2),  # exactly 1/10
        (31, 300, 3),
        (100, 300, 3),  # exactly 1/3
        (101, 300, 4),
        (200, 300, 4),  # exactly 2/3
        (201, 300, 5),
        (300, 300, 5),
    ],
)
def test_allred_proportion_follows_its_table(positive, total, proportion):
    scores = score(nuclei(calls(positive, total)), bootstraps=0, **HOW)
    assert scores["allred"]["proportion"] == proportion


@pytest.mark.parametrize(("graded", "intensity"), [([1, 1, 2], 1), ([1, 2], 2), ([2, 3], 3), ([2, 2, 3], 2), ([3], 3)])
def test_allred_intensity_is_the_mean_grade_of_positive_nuclei_with_half_up(graded, intensity):
    scores = score(nuclei([True] * len(graded) + [False] * 9, graded + [0] * 9), **HOW)
    assert scores["allred"]["intensity"] == intensity


def test_no_nuclei_have_counts_and_no_scores():
    scores = score(nuclei([]), **HOW)
    assert scores["counts"]["total"] == scores["density_per_mm2"]["total"] == 0
    assert scores["percent_positive"] is scores["h_score"] is scores["intervals"]["percent_positive"] is None
    assert set(scores["allred"].values()) == {None}
    json.dumps(scores, allow_nan=False)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=30), st.integers(0, 5))
def test_scores_are_json_within_range_and_inside_their_order(rows, bootstraps):
    table = nuclei([row[0] for row in rows], [row[1] for row in rows])
    scores = score(table, bootstraps=bootstraps, **HOW)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert scores["counts"]["positive"] + scores["counts"]["negative"] == len(rows)
    if rows:
        assert 0 <= scores["percent_positive"] <= 100
        assert scores["percent_positive"] <= scores["h_score"] + 1e-9 <= 3 * scores["percent_positive"] + 1e-8


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others():
    table = nuclei(calls(40, 100))
    first, again, other = (score(table, seed=seed, **HOW)["intervals"] for seed in (1, 1, 2))
    assert first == again != other


def field(rng, *, side, per_block, spread):
    """Draw nuclei in side x side blocks of 400 px (100 um), whose positivity varies from block to block around 0.4."""
    rate = np.clip(rng.normal(0.4, spread, side * side), 0, 1)
    block = np.repeat(np.arange(side * side), per_block)
    y, x = (block // side) * 400 + 200.0, (block % side) * 400 + 200.0
    return nuclei(rng.uniform(size=len(block)) < rate[block], y=y, x=x)


@pytest.mark.parametrize(("side", "per_block", "spread"), [(8, 15, 0.2), (4, 12, 0.0)])
def test_intervals_hold_the_truth_about_95_times_in_100(side, per_block, spread):
    rng = np.random.default_rng(5)
    drawn = [field(rng, side=side, per_block=per_block, spread=spread) for _ in range(200)]
    intervals = [score(table, bootstraps=300, **HOW)["intervals"]["percent_positive"] for table in drawn]
    held = np.mean([low <= 40 <= high for low, high in intervals])
    assert 0.9 <= held <= 0.99


def test_patchy_staining_widens_the_interval():
    rng = np.random.default_rng(0)
    table = field(rng, side=8, per_block=15, spread=0.3)
    patchy = score(table, **HOW)
    scattered = score(table, **HOW, block_um=1e6)
    assert (patchy["bootstrap"]["resampled"], scattered["bootstrap"]["resampled"]) == ("blocks", "nuclei")
    assert np.ptp(patchy["intervals"]["percent_positive"]) > 1.5 * np.ptp(scattered["intervals"]["percent_positive"])


@pytest.mark.parametrize(
    ("blocks", "resampled", "units"),
    [(MIN_BLOCKS, "blocks", MIN_BLOCKS), (MIN_BLOCKS - 1, "nuclei", 3 * (MIN_BLOCKS - 1))],
)
def test_nuclei_are_resampled_where_blocks_are_few(blocks, resampled, units):
    x = np.repeat(np.arange(blocks) * 400.0, 3)
    how = score(nuclei(calls(9, len(x)), x=x), **HOW)["bootstrap"]
    assert (how["resampled"], how["units"]) == (resampled, units)


def test_the_interval_of_a_count_of_independent_nuclei_is_as_wide_as_poisson():
    low, high = score(nuclei(calls(100, 400)), bootstraps=4000, **HOW)["intervals"]["counts"]["total"]
    assert low == pytest.approx(400 - 1.96 * 20, abs=4)
    assert high == pytest.approx(400 + 1.96 * 20, abs=4)


def test_no_bootstraps_leave_the_intervals_out():
    assert score(nuclei(calls(3, 9)), bootstraps=0, **HOW)["intervals"]["h_score"] is None


def test_a_hundred_thousand_nuclei_are_scored_within_a_second():
    rng = np.random.default_rng(0)
    y, x = rng.uniform(0, 18_000, (2, 100_000))
    table = nuclei(rng.uniform(size=100_000) < 0.3, y=y, x=x)
    start = time.perf_counter()
    score(table, **HOW)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"area_mm2": 0}, "area_mm2 must be a positive number; found 0"),
        ({"mpp": None}, "mpp must be a positive number; found None"),
        ({"block_um": float("nan")}, "block_um must be a positive number; found nan"),
        ({"bootstraps": -1}, "bootstraps must be an integer from 0; found -1"),
        ({"seed": 0.5}, "seed must be an integer from 0; found 0.5"),
    ],
)
def test_options_out_of_range_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        score(nuclei([True]), **(HOW | wrong))


def test_a_grade_beyond_3_is_refused():
    with pytest.raises(ContractViolation, match=r"Grades must be 0, 1, 2 or 3; found \[1, 4\]"):
        score(nuclei([True, True], [1, 4]), **HOW)


def test_a_density_at_a_cut_reaches_its_grade():
    assert grades([0.0, 0.199, 0.2, 0.4, 0.599, 0.6, 5.0]).tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert grades([]).dtype == np.int8


@pytest.mark.parametrize("cuts", [(0.2, 0.4), (0.4, 0.2, 0.6), (0.2, 0.2, 0.6), (0.2, 0.4, float("nan"))])
def test_cuts_that_are_not_three_and_increasing_are_refused(cuts):
    with pytest.raises(ConfigError, match="three increasing optical densities"):
        grades([0.1], cuts)


def test_a_density_that_is_not_a_number_is_refused():
    with pytest.raises(ContractViolation, match=r"one DAB optical density per nucleus without NaN; .* with 1 NaN"):
        grades([0.1, float("nan")])


def test_the_sensitivity_curve_counts_at_or_above():
    curve = sensitivity([0.1, 0.2, 0.2, 0.9], [0.5, 0.2, 0.0, 1.0])
    assert curve == {
        "threshold": [0.5, 0.2, 0.0, 1.0],
        "positive": [1, 3, 4, 0],
        "percent_positive": [25, 75, 100, 0],
    }


def test_the_sensitivity_curve_of_no_nuclei_is_defined():
    assert sensitivity([], [0.5]) == {"threshold": [0.5], "positive": [0], "percent_positive": [None]}


@pytest.mark.parametrize("thresholds", [[], [float("inf")], 0.5])
def test_a_curve_without_thresholds_is_refused(thresholds):
    with pytest.raises(ConfigError, match="at least one finite number"):
        sensitivity([0.1], thresholds)


def test_the_curve_agrees_with_rescoring():
    rng = np.random.default_rng(3)
    p = rng.uniform(size=50)
    table = nuclei(p >= 0.5, p=p)
    thresholds = [0.1, 0.5, float(p[7])]
    expected = [rescore(table, threshold=t, bootstraps=0, **HOW)[1]["percent_positive"] for t in thresholds]
    assert sensitivity(p, thresholds)["percent_positive"] == expected


def test_rescoring_by_density_calls_and_grades_anew():
    dab = np.array([0.1, 0.25, 0.45, 0.7])
    table = nuclei([False] * 4, dab=dab)
    anew, scores = rescore(table, by="dab_od_mean", threshold=0.25, grade_cuts=(0.3, 0.5, 0.7), **HOW)
    assert anew.positive.tolist() == [False, True, True, True]
    assert anew.grade.tolist() == [0, 0, 1, 3]
    assert scores["h_score"] == (1 + 1 + 3) * 100 / 4
    assert scores["rescored"] == {"by": "dab_od_mean", "threshold": 0.25, "grade_cuts": [0.3, 0.5, 0.7]}
    assert not table.positive.any()


def test_rescoring_without_a_change_gives_the_same_scores():
    table = nuclei(calls(4, 9))
    anew, scores = rescore(table, **HOW)
    assert anew is table
    assert scores == {**score(table, **HOW), "rescored": {"by": "p_positive", "threshold": None, "grade_cuts": None}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"by": "dab_od_meen", "threshold": 0.2}, r"no stored column 'dab_od_meen'.*Did you mean 'dab_od_mean'\?"),
        ({"by": "dab_od_mean"}, "'dab_od_mean' needs a threshold; none was given"),
        ({"threshold": 1.5}, r"threshold of 'p_positive' must be in \[0, 1\]; found 1.5"),
        ({"by": "dab_od_mean", "threshold": float("inf")}, "must be finite; found inf"),
        ({"grade_cuts": (0.2, 0.4)}, "three increasing optical densities"),
    ],
)
def test_rescoring_says_what_it_cannot_do(wrong, message):
    with pytest.raises(ConfigError, match=message):
        rescore(nuclei([True]), **HOW, **wrong)


def test_the_default_cuts_are_those_of_qupath():
    assert GRADE_CUTS == (0.2, 0.4, 0.6)
