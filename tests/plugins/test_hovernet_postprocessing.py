"""HoVer-Net's post-processing against recorded results of the original, and against the same steps written plainly."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from stainbridge.records import check_label_map
from stainbridge.stitching import Stitcher
from stainbridge.testing.synthetic import synthetic_labels
from stainbridge.tiling import Canvas, tiles
from stainbridge_plugins.hovernet.measuring import measure
from stainbridge_plugins.hovernet.postprocessing import Rules, find_instances

cv2 = pytest.importorskip("cv2")


def _reference():
    path = Path(__file__).with_name("hovernet_reference.py")
    spec = importlib.util.spec_from_file_location("hovernet_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _reference()
ORIGINAL, FIXED = Rules(), Rules("fixed")


def maps_of(labels, *, noise=0.0, seed=0):
    """Return float32 (3, H, W) as a network might give it: probability, horizontal and vertical distance."""
    rng = np.random.default_rng(seed)
    planes = np.dstack([(labels > 0).astype(np.float32), reference.distances(labels)])
    planes = cv2.GaussianBlur(planes, (0, 0), 1.0) + rng.normal(0, noise, planes.shape)
    return np.ascontiguousarray(planes.transpose(2, 0, 1), np.float32)


def touching(side, nuclei, *, seed=0):
    return synthetic_labels((side, side), nuclei, rng=seed, mpp=0.4, gap_px=0).array


def all_core(mask):
    """Return maps of a foreground that is all core: distances are nearly flat there, and fall only in a margin at the right.

    Not quite flat, as of pixels that are equally deep neither is first.
    """
    height, width = mask.shape
    maps = np.random.default_rng(0).normal(0, 0.01, (3, height, width + 80)).astype(np.float32)
    maps[0] = 0
    maps[0, :, :width] = mask
    maps[1, :, width + 20 :] += np.concatenate([np.linspace(0, 1, 30), np.linspace(-1, 0, 30)])
    half = height // 2
    maps[2, :, width + 20 :] += np.concatenate([np.linspace(0, 1, half), np.linspace(-1, 0, height - half)])[:, None]
    return maps


def found(maps, rules=ORIGINAL):
    return find_instances(maps[0], maps[1:], rules)


def by_the_reference(maps):
    return reference.instances(np.ascontiguousarray(maps.transpose(1, 2, 0)))


def assert_same_up_to_order(labels, expected):
    """Each object of one map is exactly one object of the other."""
    pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
    for side in pairs:
        values, counts = np.unique(side, return_counts=True)
        assert counts.max(initial=1) == 1, f"objects {values[counts > 1][:5]} are parts of several"
    assert_array_equal(labels > 0, expected > 0)


@pytest.fixture(scope="module", params=["train_1", "train_10"])
def golden(request, shared):
    with np.load(shared / "golden" / "hovernet_postprocessing.npz") as archive:
        return {key: archive[f"hovernet_{key}_{request.param}"] for key in ("pred", "instances", "info")}


class TestAgainstTheOriginal:
    def test_instances_are_the_recorded_ones(self, golden):
        maps = np.ascontiguousarray(golden["pred"].transpose(2, 0, 1))
        assert_same_up_to_order(found(maps[1:]), golden["instances"])

    def test_the_plain_reference_gives_the_recorded_ones_too(self, golden):
        assert_array_equal(reference.instances(golden["pred"][..., 1:]), golden["instances"])

    def test_boxes_centroids_and_types_are_the_recorded_ones(self, golden):
        labels = golden["instances"]
        assert labels.max() == len(np.unique(labels)) - 1
        table = measure(labels, golden["pred"][..., 0].astype(np.uint8))
        ids, x, y, types, shares, top, left, bottom, right = golden["info"].T
        assert_array_equal(table.ids, ids)
        assert_array_equal(table.centroids, np.stack([x, y], axis=1))
        assert_array_equal(table.types, types)
        assert_array_equal(table.shares, shares)
        assert_array_equal(table.boxes, np.stack([top, left, bottom, right], axis=1))


class TestAgainstTheReference:
    @pytest.mark.parametrize("noise", [0.0, 0.03, 0.1])
    @pytest.mark.parametrize("seed", range(3))
    def test_touching_nuclei_are_parted_at_the_same_pixels(self, seed, noise):
        labels = touching(256, 45, seed=seed)
        maps = maps_of(labels, noise=noise, seed=seed)
        ours = found(maps)
        check_label_map(ours, "HoVer-Net")
        assert 35 <= ours.max() <= 50
        assert_same_up_to_order(ours, by_the_reference(maps))

    @settings(max_examples=40)
    @example(40, 173, 2.0, 0.0, 0)
    @given(
        st.integers(1, 90), st.integers(1, 400), st.floats(0.6, 4.0), st.floats(-1.0, 0.6), st.integers(0, 2**32 - 1)
    )
    def test_any_field_of_any_size_gives_the_same(self, height, width, blur, level, seed):
        """Smoothed noise has what nuclei do not: holes in holes, cores in holes, cores that reach over two pieces."""
        rng = np.random.default_rng(seed)
        noise = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), blur).reshape(height, width, 3)
        scaled = noise / max(1e-6, noise.std())
        maps = np.ascontiguousarray(np.add(scaled, (0.5 + level, 0, 0)).transpose(2, 0, 1), np.float32)
        assert_same_up_to_order(found(maps), by_the_reference(maps))

    @settings(max_examples=40)
    @given(
        st.integers(20, 90), st.integers(20, 90), st.floats(0.3, 3.0), st.floats(0.35, 0.6), st.integers(0, 2**32 - 1)
    )
    def test_holes_are_filled_as_in_the_original(self, height, width, blur, share, seed):
        rng = np.random.default_rng(seed)
        noise = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), blur)
        maps = all_core(noise > np.quantile(noise, share))
        assert_same_up_to_order(found(maps), by_the_reference(maps))

    def test_a_core_that_fills_a_hole_is_one_nucleus_with_the_island_in_it(self):
        y, x = np.mgrid[:64, :64]
        away = np.hypot(y - 32, x - 32)
        maps = all_core((away < 6) | ((away > 14) & (away < 22)))
        ours = found(maps)
        assert ours[32, 32] == ours[32, 50] == 1
        assert ours[32, 42] == 0
        assert_same_up_to_order(ours, by_the_reference(maps))

    def test_the_table_is_the_same_to_the_digit(self):
        maps = maps_of(touching(256, 45), noise=0.03)
        labels = found(maps)
        rng = np.random.default_rng(0)
        types = (rng.integers(0, 5, labels.shape) * (rng.random(labels.shape) < 0.4)).astype(np.uint8)
        table, expected = measure(labels, types), reference.table(labels, types)
        assert_array_equal(table.ids, list(expected))
        for row, one in enumerate(expected.values()):
            assert_array_equal(table.boxes[row], np.ravel(one["box"]))
            assert_array_equal(table.centroids[row], one["centroid"])
            assert_array_equal(table.contours[row], one["contour"])
            assert (table.types[row], table.shares[row]) == (one["type"], one["share"])


class TestDegenerateMaps:
    @pytest.mark.parametrize("rules", [ORIGINAL, FIXED], ids=["original", "fixed"])
    @pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (64, 64)])
    @pytest.mark.parametrize("probability", [0.0, 1.0])
    @pytest.mark.parametrize("distance", [0.0, 0.7])
    def test_a_constant_map_has_no_or_one_nucleus(self, rules, shape, probability, distance):
        maps = np.full((3, *shape), distance, np.float32)
        maps[0] = probability
        labels = found(maps, rules)
        check_label_map(labels, "HoVer-Net")
        assert labels.max() <= probability
        assert len(measure(labels)) == labels.max() * (min(shape) > 1)

    def test_no_nuclei_give_an_empty_table(self):
        table = measure(np.zeros((30, 40), np.int32), np.zeros((30, 40), np.uint8))
        assert len(table) == 0
        assert table.boxes.shape == (0, 4)
        assert table.centroids.shape == (0, 2)
        assert table.types.shape == table.shares.shape == (0,)

    def test_less_than_ten_pixels_are_no_nucleus(self):
        maps = np.zeros((3, 40, 40), np.float32)
        maps[0, 10:13, 10:13] = 1
        assert found(maps).max() == 0

    def test_the_maps_stay_as_they_are(self):
        maps = maps_of(touching(96, 6))
        before = maps.copy()
        found(maps)
        found(maps, FIXED)
        assert_array_equal(maps, before)


class TestTypes:
    def labels_and_types(self, *votes):
        """Return one nucleus of a row each, whose pixels have the types that `votes` lists."""
        width = max(map(len, votes))
        labels, types = np.zeros((4 * len(votes), width), np.int32), np.zeros((4 * len(votes), width), np.uint8)
        for index, row in enumerate(votes):
            labels[4 * index : 4 * index + 2, : len(row)] = index + 1
            types[4 * index : 4 * index + 2, : len(row)] = row
        return labels, types

    def test_a_nucleus_has_the_type_of_most_of_its_pixels(self):
        table = measure(*self.labels_and_types([1, 1, 2], [3, 2, 2, 2]))
        assert table.types.tolist() == [1, 2]
        assert table.shares == pytest.approx([2 / 3, 3 / 4], abs=1e-6)

    def test_background_gives_way_to_the_next_type(self):
        table = measure(*self.labels_and_types([0, 0, 0, 4], [0, 0, 0], [0, 0, 0, 2, 3, 3]))
        assert table.types.tolist() == [4, 0, 3]
        assert table.shares == pytest.approx([1 / 4, 1, 1 / 3], abs=1e-6)

    def test_without_types_there_are_none(self):
        table = measure(self.labels_and_types([1, 1])[0])
        assert table.types is None
        assert table.shares is None

    def test_a_nucleus_of_a_line_stays_in_the_map_and_out_of_the_table(self):
        """Its contour has two points: the original leaves such nuclei out of its list."""
        labels = np.zeros((20, 20), np.int32)
        labels[2, 2:14], labels[8:14, 8:14] = 1, 2
        assert measure(labels).ids.tolist() == [2]


class TestExtent:
    """What the normalisation over the whole map costs, and what "fixed" does about it."""

    def crowded(self):
        return maps_of(touching(512, 190, seed=3))

    def brightened(self, maps):
        bright = maps.copy()
        bright[1:, 40:100, 40:100] *= 3
        return bright

    def far(self, labels):
        """Count the nuclei in the quadrant that is opposite to the bright window."""
        return len(np.setdiff1d(labels[256:, 256:], [0]))

    def test_one_bright_window_erases_nuclei_elsewhere(self):
        maps = self.crowded()
        assert self.far(found(maps)) >= 40
        assert self.far(found(self.brightened(maps))) <= 4

    def test_fixed_lets_no_window_change_what_is_elsewhere(self):
        maps = self.crowded()
        before, after = found(maps, FIXED), found(self.brightened(maps), FIXED)
        assert self.far(before) >= 40
        assert_same_up_to_order(before[256:, 256:], after[256:, 256:])

    def test_on_ordinary_maps_fixed_finds_what_the_original_finds(self):
        labels = touching(512, 190, seed=3)
        maps = maps_of(labels, noise=0.02)
        for rules in (ORIGINAL, FIXED):
            assert found(maps, rules).max() == pytest.approx(labels.max(), rel=0.03)

    @pytest.mark.parametrize(("core", "shift"), [(128, 0), (128, 1), (128, 63), (256, 17), (512, 40)])
    def test_tiles_of_any_grid_have_the_nuclei_of_the_whole_map(self, core, shift):
        maps = self.crowded()
        stitcher = Stitcher(Canvas(maps.shape[1:], np.int32))
        for tile in tiles(maps.shape[1:], core, 64, offset=(shift, shift)):
            stitcher.add(found(np.ascontiguousarray(maps[:, *tile.outer.slices]), FIXED), tile)
        stitcher.finish()
        assert_same_up_to_order(np.asarray(stitcher.canvas), found(maps, FIXED))

    def test_tiles_change_what_the_original_finds(self):
        maps = self.brightened(self.crowded())
        alone = found(np.ascontiguousarray(maps[:, 256:, 256:]))
        assert alone.max() >= 40 > 4 >= self.far(found(maps))
