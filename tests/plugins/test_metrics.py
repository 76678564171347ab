"""Metrics against cases worked by hand and against a dense, slow reference written here."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from stainbridge import Image, Labels, Nuclei, Result, Sample
from stainbridge.errors import ConfigError, ContractViolation
from stainbridge.overlap import dice_counts, match_counts, matched, overlaps
from stainbridge_plugins.metrics.masks import InstanceMatching, PixelDice
from stainbridge_plugins.metrics.pooling import rates

SWEEP = range(50, 101, 5)


def counts(truth, prediction, pct=50):
    return tuple(match_counts(overlaps(truth, prediction), [pct])[0].tolist())


def canvas(*boxes, size=100):
    """Draw (y0, y1, x0, x1) rectangles with ids 1..n."""
    labels = np.zeros((size, size), np.int32)
    for number, (y0, y1, x0, x1) in enumerate(boxes, 1):
        labels[y0:y1, x0:x1] = number
    return labels


def reference_counts(truth, prediction, pct):
    """Dense IoU table of fractions and one assignment over all of it."""
    truth_ids, prediction_ids = (np.unique(labels[labels > 0]) for labels in (truth, prediction))
    good = np.zeros((len(truth_ids), len(prediction_ids)))
    for row, a in enumerate(truth_ids):
        for column, b in enumerate(prediction_ids):
            both, either = np.sum((truth == a) & (prediction == b)), np.sum((truth == a) | (prediction == b))
            good[row, column] = Fraction(int(both), int(either)) >= Fraction(pct, 100)
    tp = int(good[linear_sum_assignment(good, maximize=True)].sum())
    return tp, len(prediction_ids) - tp, len(truth_ids) - tp


def label_maps(high):
    return st.lists(st.lists(st.integers(0, high), min_size=8, max_size=8), min_size=8, max_size=8).map(
        lambda rows: np.array(rows, np.int32)
    )


def pair(truth, prediction):
    """Wrap two label maps as a metric gets them."""
    image = Image(np.full((*truth.shape, 3), 255, np.uint8), 0.25)
    none = np.zeros(0)
    nuclei = Nuclei.from_columns(
        dict.fromkeys(("label", "y", "x", "area_um2", "y0", "x0", "y1", "x1"), none)
        | dict.fromkeys(("p_positive", "positive", "grade", "clipped"), none)
    )
    found = Labels(prediction, 0.25) if prediction.shape == truth.shape else Labels(prediction)
    return Result(image, found, nuclei, None, {}, {}), Sample(image, Labels(truth, 0.25))


def test_a_square_shifted_by_half_has_iou_one_third():
    truth, prediction = canvas((10, 20, 10, 20)), canvas((10, 20, 15, 25))
    found = overlaps(truth, prediction)
    assert (found.n_ij.tolist(), found.union.tolist()) == ([50], [150])
    assert counts(truth, prediction, 50) == (0, 1, 1)
    assert counts(truth, prediction, 33) == (1, 0, 0)
    assert counts(truth, prediction, 34) == (0, 1, 1)


@pytest.mark.parametrize(
    ("dtype", "gap"), [(np.int32, 1000), (np.uint16, 40), (np.int64, 2**40), (np.uint64, 3), (np.uint64, 2**62)]
)
def test_gaps_in_ids_change_nothing(dtype, gap):
    truth, prediction = canvas((0, 9, 0, 9), (20, 29, 0, 9)), canvas((0, 9, 0, 9), (20, 29, 30, 39))
    gapped = prediction.astype(dtype) * dtype(gap)
    assert counts(truth, gapped) == counts(truth, prediction) == (1, 1, 1)
    assert counts(gapped, truth) == (1, 1, 1)


def test_gapped_ids_without_any_background_are_numbered_from_zero():
    found = overlaps(np.full((4, 4), 2**40), np.ones((4, 4), np.int32))
    assert (found.i.tolist(), found.j.tolist(), found.truth_px.tolist()) == ([0], [0], [16])


def test_an_iou_of_exactly_one_half_is_a_match():
    truth, prediction = canvas((0, 2, 0, 2), size=8), canvas((0, 2, 0, 1), size=8)
    assert counts(truth, prediction, 50) == (1, 0, 0)
    assert counts(truth, prediction, 51) == (0, 1, 1)


def test_every_threshold_includes_its_own_tie():
    for pct in range(1, 101):
        truth, prediction = canvas((0, 1, 0, 100)), canvas((0, 1, 0, pct))
        assert counts(truth, prediction, pct) == (1, 0, 0)
        assert pct == 100 or counts(truth, prediction, pct + 1) == (0, 1, 1)


def test_one_prediction_over_two_truths_matches_one_of_them():
    truth, prediction = canvas((0, 10, 0, 10), (0, 10, 10, 20)), canvas((0, 10, 0, 20))
    assert counts(truth, prediction, 50) == (1, 0, 1)
    assert counts(truth, prediction, 55) == (0, 1, 2)


def test_a_chain_of_overlaps_is_assigned_to_give_the_most_pairs():
    # Truth 2 lies best on prediction 1, but then truth 1 would have none: greedy finds one pair, optimal two.
    truth, prediction = canvas((0, 1, 0, 4), (0, 1, 4, 12)), canvas((0, 1, 2, 9), (0, 1, 9, 14))
    assert counts(truth, prediction, 20) == (2, 0, 0)


def test_among_equally_many_pairs_the_larger_iou_wins():
    truth, prediction = canvas((0, 1, 0, 4), (0, 1, 4, 10)), canvas((0, 1, 0, 10))
    found = overlaps(truth, prediction)
    assert found.i[matched(found, 30)].tolist() == [1]


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [
        (canvas(), canvas(), (0, 0, 0)),
        (canvas((0, 9, 0, 9)), canvas(), (0, 0, 1)),
        (canvas(), canvas((0, 9, 0, 9)), (0, 1, 0)),
        (np.zeros((0, 0), np.int32), np.zeros((0, 0), np.int32), (0, 0, 0)),
    ],
)
def test_empty_maps_are_counted(truth, prediction, expected):
    assert counts(truth, prediction) == expected
    assert counts(truth, prediction, 10) == expected


@settings(max_examples=60, deadline=None)
@given(label_maps(5), label_maps(9), st.integers(1, 100))
def test_counts_equal_the_dense_reference(truth, prediction, pct):
    assert counts(truth, prediction, pct) == reference_counts(truth, prediction, pct)


@settings(max_examples=30, deadline=None)
@given(label_maps(4), st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20))
def test_counts_equal_the_dense_reference_on_slightly_wrong_maps(truth, holes):
    prediction = truth.copy()
    for y, x in holes:
        prediction[y, x] = (prediction[y, x] + 1) % 5
    for pct in (10, 30, 50, 55, 90):
        assert counts(truth, prediction, pct) == reference_counts(truth, prediction, pct)


@settings(max_examples=30, deadline=None)
@given(label_maps(6), label_maps(6))
def test_the_table_holds_every_shared_pixel_once(truth, prediction):
    found = overlaps(truth, prediction)
    both, in_truth, in_prediction = dice_counts(found)
    assert both == np.sum((truth > 0) & (prediction > 0))
    assert (in_truth, in_prediction) == (np.sum(truth > 0), np.sum(prediction > 0))
    assert len(set(zip(found.i.tolist(), found.j.tolist(), strict=True))) == len(found.i)


def test_no_table_of_n_by_m_is_made():
    ids = np.arange(1, 300 * 300 + 1, dtype=np.int32).reshape(300, 300)
    # 90,000 x 90,000 would be 60 GB.
    assert counts(ids, np.ascontiguousarray(ids[::-1]), 50) == (90_000, 0, 0)


@pytest.mark.parametrize("stretch", [1, 2**55])
def test_overlaps_do_not_depend_on_the_size_of_the_ids(stretch):
    truth = np.array([[0, 1, 1, 3], [0, 1, 3, 3]], np.int64) * stretch
    prediction = np.array([[2, 2, 2, 0], [0, 5, 5, 5]], np.int64) * stretch
    found = overlaps(truth, prediction)
    assert found.i.tolist() == [0, 0, 1]
    assert found.j.tolist() == [0, 1, 1]
    assert found.n_ij.tolist() == [2, 1, 2]
    assert found.truth_px.tolist() == [3, 3]
    assert found.prediction_px.tolist() == [3, 3]


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ContractViolation, match=r"Truth \(100, 100\) and prediction \(50, 50\) differ in size"):
        overlaps(canvas(), canvas(size=50))
    with pytest.raises(
        ContractViolation,
        match=r"prediction: labels must be an array of integers, .*found float64",
    ):
        overlaps(canvas(), canvas().astype(float))
    with pytest.raises(ContractViolation, match="truth: label ids must not be negative; found -1"):
        overlaps(canvas() - 1, canvas())


@pytest.mark.parametrize("pct", [0, 101, 0.5])
def test_a_threshold_that_is_not_in_hundredths_is_refused(pct):
    with pytest.raises(ConfigError, match=f"integer in hundredths, 1 to 100; found {pct}"):
        match_counts(overlaps(canvas(), canvas()), [pct])


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 500))
def test_rates_obey_their_identities(tp, fp, fn):
    found = rates(tp, fp, fn)
    precision, recall, f1 = found["precision"], found["recall"], found["f1"]
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
    assert found["accuracy"] == pytest.approx(f1 / (2 - f1), abs=1e-12)


def test_truth_against_itself_is_perfect_at_every_threshold():
    metric = InstanceMatching()
    labels = canvas((0, 9, 0, 9), (20, 29, 0, 9))
    values = metric.update(*pair(labels, labels))
    assert {values[f"f1@{pct / 100:.2f}"] for pct in SWEEP} == {1.0}
    assert values["tp@1.00"] == 2


def test_matching_pools_counts_and_averages_rates():
    metric = InstanceMatching()
    one, two = canvas((0, 9, 0, 9)), canvas((0, 9, 0, 9), (20, 29, 0, 9))
    metric.update(*pair(one, one))  # F1 1
    metric.update(*pair(two, canvas((0, 9, 0, 9), (40, 49, 0, 9))))  # tp 1, fp 1, fn 1: F1 1/2
    metric.update(*pair(canvas(), canvas()))
    values = metric.compute()
    assert (values["tp@0.50"], values["fp@0.50"], values["fn@0.50"]) == (2, 1, 1)
    assert values["f1@0.50"] == pytest.approx(4 / 6)
    assert values["accuracy@0.50"] == pytest.approx(2 / 4)
    assert values["f1_mean@0.50"] == pytest.approx(3 / 4)
    assert (values["images"], values["images_empty"]) == (3, 1)


def test_a_missed_image_scores_zero_and_an_empty_one_scores_nothing():
    metric = InstanceMatching()
    assert metric.update(*pair(canvas((0, 9, 0, 9)), canvas()))["f1@0.50"] == 0
    assert math.isnan(metric.update(*pair(canvas(), canvas()))["f1@0.50"])
    assert metric.compute()["f1_mean@0.50"] == 0


def test_dice_of_a_half_shifted_square_is_one_half():
    assert PixelDice().update(*pair(canvas((10, 20, 10, 20)), canvas((10, 20, 15, 25))))["dice"] == 0.5


def test_dice_pools_pixels_and_leaves_empty_images_out_of_the_mean():
    metric = PixelDice()
    metric.update(*pair(canvas((0, 10, 0, 10)), canvas((0, 10, 0, 10))))  # 100 of 100 and 100
    metric.update(*pair(canvas((0, 10, 0, 30)), canvas()))  # 0 of 300 and 0
    assert math.isnan(metric.update(*pair(canvas(), canvas()))["dice"])
    assert metric.compute() == {"dice_mean": 0.5, "dice_pooled": 0.4, "images": 3.0, "images_empty": 1.0}


@pytest.mark.parametrize("metric", [PixelDice, InstanceMatching])
def test_a_metric_that_saw_nothing_knows_nothing(metric):
    values = metric().compute()
    assert values["images"] == 0
    assert math.isnan(values.get("dice_mean", values.get("f1@0.50")))


def test_a_result_of_another_size_is_refused():
    with pytest.raises(ContractViolation, match="differ in size"):
        PixelDice().update(*pair(canvas(), canvas(size=50)))


def test_the_metrics_are_registered():
    from stainbridge_plugins import metrics

    assert {metric.name: metric.api for metric in metrics.register_metrics()} == dict.fromkeys(
        ("aji", "count", "detection", "matching", "panoptic", "dice", "positivity", "preservation"), 1
    )
