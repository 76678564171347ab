"""Stitched nuclei are those of the whole picture: none doubled, none lost, none silently cut."""

import numpy as np
import pytest

from stainbridge.stages import _without_gaps
from stainbridge.stitching import Stitcher
from stainbridge.testing.synthetic import synthetic_labels
from stainbridge.tiling import Canvas, tiles


def stitch(whole, core, halo, offset=(0, 0)):
    """Cut the oracle's labels into windows, as a perfect segmenter would give them, and stitch them again."""
    stitcher = Stitcher(Canvas(whole.shape, np.int32))
    for tile in tiles(whole.shape, core, halo, offset=offset):
        stitcher.add(_without_gaps(whole[tile.outer.slices]), tile)
    stitcher.finish()
    return stitcher, np.asarray(stitcher.canvas)


def whole_objects(found, whole):
    """Tell for each id of `found` whether it is exactly one object of `whole`."""
    n = int(whole.max()) + 1
    joint, shared_px = np.unique(found.ravel().astype(np.int64) * n + whole.ravel(), return_counts=True)
    i, j = np.divmod(joint, n)
    area, whole_area = np.bincount(found.ravel()), np.bincount(whole.ravel(), minlength=n)
    same = np.zeros(len(area), bool)
    same[i] |= (shared_px == area[i]) & (shared_px == whole_area[j]) & (j > 0)
    return same[1:]


def assert_same_objects(found, whole):
    """Every object of one is an object of the other, pixel for pixel."""
    assert found.max() == whole.max()
    assert np.array_equal(found > 0, whole > 0)
    assert whole_objects(found, whole).all()


@pytest.fixture(scope="module")
def oracle():
    return synthetic_labels((1100, 1300), 1500, rng=3, mpp=0.4, gap_px=0)


@pytest.mark.parametrize("core", [256, 512, pytest.param(1024, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("shift", [0, 1, 7, 31, 63])
def test_tiles_give_the_nuclei_of_the_whole(oracle, core, shift):
    halo = int(np.ceil(oracle.half_extent_px))
    stitcher, found = stitch(oracle.array, core, halo, (shift, shift * 5 % 64))
    assert_same_objects(found, oracle.array)
    assert len(stitcher) == oracle.array.max()
    assert stitcher.duplicates == 0


@pytest.mark.heavy
def test_all_shifts_of_the_grid_give_the_same_nuclei():
    oracle = synthetic_labels((300, 300), 70, rng=5, mpp=0.4, gap_px=0)
    halo = int(np.ceil(oracle.half_extent_px))
    for shift in range(1, 64):  # every shift, on a picture of nine tiles
        _, found = stitch(oracle.array, 128, halo, (shift, 64 - shift))
        assert_same_objects(found, oracle.array)


def test_boxes_hold_their_nuclei(oracle):
    stitcher, found = stitch(oracle.array, 256, 40)
    for label, (y0, x0, y1, x1) in enumerate(stitcher.boxes, start=1):
        rows, columns = np.nonzero(found == label) if label < 40 else (np.array([y0, y1 - 1]), np.array([x0, x1 - 1]))
        assert (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) == (y0, x0, y1, x1)


def test_nothing_is_flagged_while_the_halo_is_the_whole_extent():
    oracle = synthetic_labels((600, 600), 300, rng=1, mpp=0.4)
    stitcher, _ = stitch(oracle.array, 128, 2 * int(np.ceil(oracle.half_extent_px)) + 1)
    assert not any(stitcher.clipped)


@pytest.mark.parametrize("halo", [0, 1, 5, 12])
def test_a_halo_that_is_too_small_flags_what_it_may_have_cut_and_loses_no_pixel(oracle, halo):
    stitcher, found = stitch(oracle.array, 128, halo)
    kept = np.zeros(oracle.array.max() + 1, bool)
    kept[oracle.array[found > 0]] = True
    assert kept[1:].all()
    assert (whole_objects(found, oracle.array) | np.array(stitcher.clipped)).all()


def test_pieces_of_one_long_object_are_joined_where_they_overlap():
    whole = np.zeros((64, 400), np.int32)
    whole[30:34, 10:390] = 1
    stitcher, found = stitch(whole, 64, 16)
    assert found.max() == 1
    assert np.array_equal(found, whole)
    assert stitcher.clipped == [True]
    assert stitcher.boxes == [[30, 10, 34, 390]]


def test_an_object_that_every_tile_disowns_is_kept_and_flagged():
    left, right = tiles((64, 128), 64, 8)
    streak = np.zeros((64, left.outer.width), np.int32)
    streak[30:34, 50:80] = 1  # from the left core to the end of the halo: the centroid lies in the right core
    stitcher = Stitcher(Canvas((64, 128), np.int32))
    stitcher.add(streak, left)
    stitcher.add(np.zeros((64, right.outer.width), np.int32), right)
    assert len(stitcher) == 0
    stitcher.finish()
    assert stitcher.clipped == [True]
    assert stitcher.boxes == [[30, 50, 34, 80]]
    assert np.array_equal(np.asarray(stitcher.canvas)[:, :80], streak)


def test_a_nucleus_seen_twice_with_different_outlines_is_counted_once():
    stitcher = Stitcher(Canvas((64, 128), np.int32))
    left, right = tiles((64, 128), 64, 16)
    first = np.zeros((64, left.outer.width), np.int32)
    first[20:40, 50:66] = 1  # centroid in the left core
    second = np.zeros((64, right.outer.width), np.int32)
    second[20:40, 56 - right.outer.x : 76 - right.outer.x] = 1  # seen larger from the right: centroid in the right core
    stitcher.add(first, left)
    stitcher.add(second, right)
    assert len(stitcher) == 1
    assert stitcher.duplicates == 1
    assert np.array_equal(np.asarray(stitcher.canvas)[:, : left.outer.width], first)


def test_an_empty_picture_has_no_nuclei():
    stitcher, found = stitch(np.zeros((100, 100), np.int32), 64, 8)
    assert len(stitcher) == 0
    assert not found.any()
