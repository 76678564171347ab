"""The table of overlaps, the pairs chosen from it and pairs of points, against exhaustive search and cases worked by hand."""

import copy
import gc
import itertools
import pickle
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from stainbridge import Image, Labels, Sample, overlap
from stainbridge.assignment import greatest_gain, in_order, most_pairs
from stainbridge.errors import ConfigError, ContractViolation
from stainbridge.overlap import best_partners, jaccard_counts, match_counts, matched, one_to_one, overlaps
from stainbridge.points import centroids, matched_points

FIELDS = ("i", "j", "n_ij", "truth_px", "prediction_px")


def row(*ids):
    """A label map one pixel high."""
    return np.array([ids], np.int32)


def random_labels(seed, *, size=64, cell=4, ids=40):
    """Squares of random ids: objects in several pieces, gaps in the ids, much contact."""
    cells = np.random.default_rng(seed).integers(0, ids, (size // cell, size // cell))
    return np.kron(cells, np.ones((cell, cell), int)).astype(np.int32)


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


@pytest.mark.parametrize("block", [1, 2, 63, 64, 100])
def test_where_a_block_ends_changes_nothing(monkeypatch, block):
    truth, prediction = random_labels(0, size=24), random_labels(1, size=24)
    whole = overlaps(truth, prediction)
    monkeypatch.setattr(overlap, "_BLOCK_PX", block)
    assert same(overlaps(truth, prediction), whole)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.uint64])
def test_the_type_of_the_ids_changes_nothing(dtype):
    truth, prediction = random_labels(2), random_labels(3)
    assert same(overlaps(truth.astype(dtype), prediction), overlaps(truth, prediction))


@pytest.mark.parametrize(
    ("high", "dtype"), [(2**31 - 1, np.int32), (2**31, np.int64), (2**63 - 1, np.int64), (2**64 - 1, np.uint64)]
)
def test_the_largest_ids_that_a_type_holds_are_ids_like_others(high, dtype):
    truth, prediction = np.zeros((8, 8), dtype), np.zeros((8, 8), dtype)
    truth[0], truth[1], prediction[0, 2:], prediction[1] = high, high - 1, high - 5, high
    found = overlaps(truth, prediction)
    assert found.n_ij.tolist() == [8, 6]
    assert (found.i.tolist(), found.j.tolist()) == ([0, 1], [1, 0])


def test_ids_of_different_types_meet():
    found = overlaps(np.full((3, 3), 2**63, np.uint64), np.full((3, 3), 1, np.int8))
    assert (found.truth_px.tolist(), found.prediction_px.tolist(), found.n_ij.tolist()) == ([9], [9], [9])


def test_a_view_that_is_not_contiguous_is_counted_alike():
    truth, prediction = random_labels(4), random_labels(5)
    assert same(overlaps(truth.T, prediction.T), overlaps(truth.T.copy(), prediction.T.copy()))


def test_an_object_of_several_pieces_stays_one():
    found = overlaps(row(1, 0, 1, 0, 1), row(1, 1, 1, 0, 0))
    assert (found.n_ij.tolist(), found.truth_px.tolist(), found.prediction_px.tolist()) == ([2], [3], [3])


def test_a_mask_of_true_and_false_is_no_label_map():
    with pytest.raises(ContractViolation, match=r"prediction: labels must be an array of integers.*found bool"):
        overlaps(row(1), row(1) > 0)


def test_a_negative_id_is_refused_wherever_it_lies(monkeypatch):
    monkeypatch.setattr(overlap, "_BLOCK_PX", 4)
    labels = np.zeros((4, 4), np.int32)
    labels[3, 3] = -7
    with pytest.raises(
        ContractViolation, match=r"prediction: label ids must not be negative; found -7\. 0 is background"
    ):
        overlaps(np.zeros((4, 4), np.int32), labels)


def test_strict_leaves_out_the_tie_at_one_half_only():
    half, more = overlaps(row(1, 1, 1, 1), row(1, 1, 0, 0)), overlaps(row(1, 1, 1, 1), row(1, 1, 1, 0))
    assert (len(matched(half, 50)), len(matched(half, 50, strict=True))) == (1, 0)
    assert (len(matched(more, 50)), len(matched(more, 50, strict=True))) == (1, 1)
    assert (len(matched(more, 75)), len(matched(more, 75, strict=True))) == (1, 0)


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_the_lengths_of_the_matches_at_every_threshold(seed):
    truth = random_labels(seed)
    prediction = np.where(np.random.default_rng(seed).random(truth.shape) < 0.8, truth, random_labels(seed + 9))
    found = overlaps(truth, prediction)
    tp = [len(matched(found, pct)) for pct in range(1, 101)]
    assert match_counts(found, range(1, 101))[:, 0].tolist() == tp
    assert tp == sorted(tp, reverse=True)


def test_the_best_partner_may_serve_several_and_the_first_wins_a_tie():
    found = overlaps(row(1, 1, 2, 2, 3, 3), row(1, 1, 1, 1, 2, 3))
    assert found.j[best_partners(found)].tolist() == [0, 0, 1]


def test_one_to_one_prefers_one_good_pair_to_two_poor_ones():
    # IoU 1-1: 1/6, 2-1: 5/7, 2-2: 1/7. Two pairs would sum to 13/42, the single one to 30/42.
    found = overlaps(row(1, 2, 2, 2, 2, 2, 2, 0), row(1, 1, 1, 1, 1, 1, 2, 2))
    chosen = one_to_one(found)
    assert list(zip(found.i[chosen], found.j[chosen], strict=True)) == [(1, 0)]
    assert jaccard_counts(found, chosen) == (5, 7 + 1 + 2)


def exhaustive(edges, better):
    """Try every set of pairs that uses no i and no j twice."""
    best = None
    for size in range(len(edges) + 1):
        for chosen in itertools.combinations(range(len(edges)), size):
            if len({edges[k][0] for k in chosen}) == len({edges[k][1] for k in chosen}) == size:
                score = better(chosen)
                best = score if best is None else max(best, score)
    return best


graphs = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 16)),
    max_size=9,
    unique_by=lambda edge: edge[:2],
)


@settings(max_examples=80, deadline=None)
@given(graphs)
def test_most_pairs_and_greatest_gain_equal_exhaustive_search(edges):
    i, j, sixteenths = (
        (np.array(column, int) for column in zip(*edges, strict=True)) if edges else [np.zeros(0, int)] * 3
    )
    value = sixteenths / 16
    chosen = most_pairs(i, j, value)
    assert (len(chosen), -value[chosen].sum()) == exhaustive(edges, lambda own: (len(own), -sum(value[k] for k in own)))
    assert value[greatest_gain(i, j, value)].sum() == exhaustive(edges, lambda own: sum(value[k] for k in own))
    for rule in (most_pairs, greatest_gain, in_order):
        own = rule(i, j, value)
        assert len(set(i[own])) == len(set(j[own])) == len(own)


class TestPoints:
    def test_a_point_exactly_at_the_radius_counts(self):
        assert matched_points(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]), 5).tolist() == [[0, 0]]
        assert matched_points(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]), 4.99).tolist() == []

    def test_more_pairs_go_before_nearer_ones_unless_greedy(self):
        truth, found = np.array([[0.0, 0.0], [0.0, 3.0]]), np.array([[0.0, 2.0], [0.0, 6.0]])
        assert matched_points(truth, found, 3).tolist() == [[0, 0], [1, 1]]
        assert matched_points(truth, found, 3, greedy=True).tolist() == [[1, 0]]

    @pytest.mark.parametrize("seed", range(20))
    def test_pairs_equal_a_dense_assignment(self, seed):
        rng = np.random.default_rng(seed)
        truth, found = rng.random((12, 2)) * 10, rng.random((15, 2)) * 10
        pairs = matched_points(truth, found, 2.5)
        distance = np.hypot(*(truth[:, None] - found[None]).transpose(2, 0, 1))
        near = distance <= 2.5
        rows, columns = linear_sum_assignment(np.where(near, distance / 1000 - 1, 0))
        kept = near[rows, columns]
        assert len(pairs) == kept.sum()
        assert distance[tuple(pairs.T)].sum() == pytest.approx(distance[rows, columns][kept].sum())

    def test_coinciding_points_are_a_pair(self):
        assert matched_points(np.ones((1, 2)), np.ones((1, 2)), 1).tolist() == [[0, 0]]

    def test_no_points_are_no_pairs(self):
        none = np.zeros((0, 2))
        for one, other in ((none, none), (none, np.ones((3, 2))), (np.ones((3, 2)), none)):
            assert matched_points(one, other, 1).shape == (0, 2)

    def test_what_are_no_points_is_said(self):
        with pytest.raises(ContractViolation, match=r"truth: points must be \(n, 2\), one row each; found \(4, 3\)"):
            matched_points(np.zeros((4, 3)), np.zeros((4, 2)), 1)
        with pytest.raises(ContractViolation, match=r"found: points must be finite numbers; row 1 is \[0.0, nan\]"):
            matched_points(np.zeros((2, 2)), np.array([[0, 0], [0, np.nan]]), 1)

    @pytest.mark.parametrize("radius", [0, -1, np.nan, np.inf, "4"])
    def test_a_radius_that_is_no_length_is_refused(self, radius):
        with pytest.raises(ConfigError, match="radius within which points match must be a positive number; found"):
            matched_points(np.zeros((1, 2)), np.zeros((1, 2)), radius)

    @pytest.mark.parametrize("stretch", [1, 1000])
    def test_centroids_are_the_mean_pixel_of_each_object(self, stretch):
        labels = random_labels(7)
        ids = np.unique(labels[labels > 0])
        expected = [np.argwhere(labels == label).mean(axis=0) for label in ids]
        np.testing.assert_allclose(centroids(labels.astype(np.int64) * stretch), expected, atol=1e-12)


class TestSample:
    """The memory of `Sample.overlaps`."""

    @pytest.fixture
    def sample(self):
        labels = np.ones((4, 4), np.int32)
        return Sample(Image(np.zeros((4, 4, 3), np.uint8), 0.25), Labels(labels, 0.25))

    @pytest.fixture
    def passes(self, monkeypatch):
        counted, count = [], overlap.overlaps
        monkeypatch.setattr(overlap, "overlaps", lambda *maps: counted.append(1) or count(*maps))
        return counted

    def test_other_labels_are_counted_anew_and_the_same_are_not(self, sample, passes):
        one, other = Labels(np.ones((4, 4), np.int32)), Labels(np.zeros((4, 4), np.int32))
        assert sample.overlaps(one) is sample.overlaps(one)
        assert len(passes) == 1
        assert len(sample.overlaps(other).prediction_px) == 0
        assert len(sample.overlaps(one).prediction_px) == 1
        assert len(passes) == 3

    def test_the_labels_are_not_kept_alive(self, sample):
        labels = Labels(np.ones((4, 4), np.int32))
        sample.overlaps(labels)
        seen = weakref.ref(labels)
        del labels
        gc.collect()
        assert seen() is None

    def test_labels_that_allow_no_weak_reference_are_counted_every_time(self, sample, passes):
        class Slotted:
            __slots__ = ()
            shape, mpp = (4, 4), 0.25

            def read(self, y, x, height, width):
                return np.ones((height, width), np.int32)

        labels = Slotted()
        for _ in range(2):
            assert sample.overlaps(labels).n_ij.tolist() == [16]
        assert len(passes) == 2

    def test_it_shows_in_no_repr_and_no_copy(self, sample):
        before = repr(sample)
        sample.overlaps(Labels(np.ones((4, 4), np.int32)))
        assert repr(sample) == before
        for one in (copy.copy(sample), pickle.loads(pickle.dumps(sample))):
            assert one._counted is None
            assert one.truth.shape == (4, 4)
