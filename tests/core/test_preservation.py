"""A translation that keeps the nuclei is told from one that moves, erases, blurs or seams them."""

import math

import numpy as np
import pytest

from stainbridge.color import EOSIN, HAEMATOXYLIN, mix
from stainbridge.errors import ConfigError, ContractViolation, ScaleUnknown
from stainbridge.preservation import (
    brown_density,
    brown_retention,
    centroid_recall,
    count_ratio,
    kept,
    nuclear_density_agreement,
    seam_ratio,
    side_by_side,
)
from stainbridge.records import Image
from stainbridge.testing.synthetic import blank_glass, synthetic_ihc

MPP = 0.25


@pytest.fixture(scope="module")
def sample():
    return synthetic_ihc(nuclei=90, positive_fraction=0.4, seed=3)


@pytest.fixture(scope="module")
def ihc(sample):
    return sample.source.pixels


@pytest.fixture(scope="module")
def he(sample):
    """The same nuclei as H&E, blue and brown ones alike."""
    return restained(sample, np.full(len(sample.positive), 0.8))


def restained(sample, haematoxylin):
    """Stain the true nuclei with haematoxylin, each as dark as told, over eosin."""
    from scipy.ndimage import gaussian_filter

    amount = gaussian_filter(np.append(0.06, haematoxylin)[sample.truth.array], 1.0)
    return mix(np.stack([amount, np.full_like(amount, 0.22)], axis=-1), (HAEMATOXYLIN, EOSIN), background=245)


class TestDensityAgreement:
    def test_a_perfect_restaining_agrees(self, ihc, he):
        assert nuclear_density_agreement(ihc, he, mpp=MPP) > 0.95

    def test_a_picture_agrees_with_itself(self, ihc):
        assert nuclear_density_agreement(ihc, ihc, mpp=MPP) > 0.98

    def test_agreement_falls_with_every_micrometre_that_nuclei_move(self, ihc, he):
        at = [nuclear_density_agreement(ihc, np.roll(he, round(um / MPP), axis=1), mpp=MPP) for um in (0, 1, 2, 4)]
        assert at == sorted(at, reverse=True)
        assert at[0] - at[2] > 0.15

    def test_the_mirror_image_does_not_agree(self, ihc, he):
        assert abs(nuclear_density_agreement(ihc, he[:, ::-1], mpp=MPP)) < 0.15

    def test_brown_nuclei_that_vanish_cost_agreement(self, ihc, he, sample):
        erased = restained(sample, np.where(sample.positive, 0.06, 0.8))
        assert nuclear_density_agreement(ihc, erased, mpp=MPP) < nuclear_density_agreement(ihc, he, mpp=MPP) - 0.3

    def test_a_darker_stain_over_yellower_glass_is_the_same_translation(self, ihc, he, sample):
        dark = restained(sample, np.full(len(sample.positive), 1.1))
        dimmed = np.rint(dark * np.array([0.95, 0.95, 0.88])).astype(np.uint8)
        assert nuclear_density_agreement(ihc, dimmed, mpp=MPP) == pytest.approx(
            nuclear_density_agreement(ihc, he, mpp=MPP), abs=0.04
        )

    def test_dab_that_is_no_nuclear_marker_is_left_out_on_demand(self, ihc, sample):
        only_blue = restained(sample, np.where(sample.positive, 0.06, 0.8))
        nuclear, other = (nuclear_density_agreement(ihc, only_blue, mpp=MPP, marker=m) for m in ("nuclear", "other"))
        assert other > nuclear + 0.2

    def test_blank_glass_has_nothing_to_agree_on(self, he):
        glass = blank_glass(he.shape[:2])
        assert math.isnan(nuclear_density_agreement(glass, he, mpp=MPP))
        assert math.isnan(nuclear_density_agreement(glass, glass, mpp=MPP))

    def test_an_he_of_one_colour_keeps_nothing(self, ihc):
        assert nuclear_density_agreement(ihc, np.full_like(ihc, 200), mpp=MPP) == 0.0

    def test_an_he_of_bare_glass_keeps_nothing(self, ihc):
        assert abs(nuclear_density_agreement(ihc, blank_glass(ihc.shape[:2]), mpp=MPP)) < 0.1

    def test_pictures_of_two_sizes_are_an_error(self, ihc, he):
        with pytest.raises(ContractViolation, match=r"alike; found \(512, 512, 3\), \(512, 500, 3\)"):
            nuclear_density_agreement(ihc, he[:, :500], mpp=MPP)

    @pytest.mark.parametrize("mpp", [0.0, -0.25, math.nan])
    def test_a_scale_that_is_none_is_an_error(self, ihc, he, mpp):
        with pytest.raises(ConfigError, match=f"must be a positive number; found {mpp}"):
            nuclear_density_agreement(ihc, he, mpp=mpp)


class TestNuclei:
    before = np.array([[10.0, 10.0], [10.0, 50.0], [50.0, 10.0], [50.0, 50.0]])

    def test_twice_the_nuclei_are_a_ratio_of_two(self):
        assert count_ratio(10, 20) == 2.0
        assert count_ratio(10, 0) == 0.0
        assert math.isnan(count_ratio(0, 3))

    def test_the_radius_is_in_micrometres(self):
        moved = np.add(self.before, (0.0, 8.0))  # 2 um
        assert centroid_recall(self.before, moved, radius_um=2.0, mpp=MPP) == 1.0
        assert centroid_recall(self.before, moved, radius_um=1.9, mpp=MPP) == 0.0

    def test_one_nucleus_on_the_he_stands_for_one_on_the_ihc(self):
        twins = np.array([[10.0, 10.0], [10.0, 14.0]])
        assert centroid_recall(twins, twins[:1], radius_um=3.0, mpp=MPP) == 0.5

    def test_no_nuclei_before_is_not_defined_and_none_after_is_zero(self):
        nothing = np.zeros((0, 2))
        assert math.isnan(centroid_recall(nothing, self.before, mpp=MPP))
        assert centroid_recall(self.before, nothing, mpp=MPP) == 0.0

    def test_three_of_four_are_kept_and_it_says_which(self):
        assert kept(self.before, self.before[[0, 2, 3]], mpp=MPP).tolist() == [True, False, True, True]

    def test_brown_retention_counts_brown_nuclei_only(self):
        brown = np.array([True, True, False, False])
        assert brown_retention(self.before, self.before[[0, 2, 3]], brown, mpp=MPP) == 0.5
        assert brown_retention(self.before, self.before[[2, 3]], brown, mpp=MPP) == 0.0
        assert math.isnan(brown_retention(self.before, self.before, np.zeros(4, bool), mpp=MPP))

    def test_an_erased_brown_nucleus_is_not_excused_by_its_blue_neighbour(self):
        pair, brown = np.array([[10.0, 10.0], [10.0, 18.0]]), np.array([True, False])
        assert brown_retention(pair, pair[1:], brown, mpp=MPP) == 0.0

    def test_a_class_is_needed_for_each_nucleus(self):
        with pytest.raises(ContractViolation, match="One class is needed for each nucleus; found 2 for 4"):
            brown_retention(self.before, self.before, np.ones(2, bool), mpp=MPP)


class TestBrownDensity:
    @pytest.mark.parametrize(("brown", "least", "most"), [(0.8, 0.9, 1.1), (0.43, 0.4, 0.6), (0.06, -0.1, 0.1)])
    def test_it_measures_how_dark_brown_nuclei_became(self, sample, brown, least, most):
        he = restained(sample, np.where(sample.positive, brown, 0.8))
        assert least < brown_density(he, sample.truth.array, sample.positive) < most

    def test_nuclei_of_one_kind_cannot_be_compared(self, sample, he):
        assert math.isnan(brown_density(he, sample.truth.array, np.zeros(len(sample.positive), bool)))

    def test_where_blue_nuclei_do_not_stand_out_either_nothing_is_said(self, sample, he):
        assert math.isnan(brown_density(np.full_like(he, 200), sample.truth.array, sample.positive))

    def test_labels_of_another_size_are_an_error(self, sample, he):
        with pytest.raises(ContractViolation, match=r"\(500, 512\) and labels \(512, 512\) differ in size"):
            brown_density(he[:500], sample.truth.array, sample.positive)


class TestSeams:
    def texture(self, seed=0, shape=(256, 256)):
        return np.random.default_rng(seed).integers(100, 140, (*shape, 3), dtype=np.uint8)

    def test_a_picture_without_seams_has_a_ratio_of_one(self):
        assert seam_ratio(self.texture(), step_px=64) == pytest.approx(1.0, abs=0.05)

    def test_a_step_of_known_height_gives_a_known_ratio(self):
        slope = np.tile(np.arange(128)[:, None, None], (1, 128, 3))  # 1 grey level per row
        slope[64:] += 4
        assert seam_ratio(slope.astype(np.uint8), rows=[64]) == pytest.approx(5.0)

    def test_columns_are_seen_as_rows_are(self):
        slope = np.tile(np.arange(128)[:, None, None], (1, 128, 3))
        slope[64:] += 4
        turned = slope.astype(np.uint8).transpose(1, 0, 2)
        assert seam_ratio(turned, columns=[64]) == pytest.approx(5.0)
        assert math.isnan(seam_ratio(turned, rows=[64]))  # a seam where all is flat

    def test_tiles_that_drift_in_colour_are_seen_in_texture(self):
        drift = self.texture()
        for number, top in enumerate(range(0, 256, 64)):
            drift[top : top + 64] += np.uint8(25 * (number % 2))
        assert seam_ratio(drift, step_px=64) > 1.2
        assert seam_ratio(drift, step_px=50) == pytest.approx(1.0, abs=0.1)

    def test_a_smooth_and_a_rough_half_without_a_seam_do_not_make_one(self):
        halves = self.texture(shape=(512, 256))
        halves[:200] = 120
        assert seam_ratio(halves, step_px=256) == pytest.approx(1.0, abs=0.05)

    def test_a_picture_of_one_tile_has_no_seams(self):
        assert math.isnan(seam_ratio(self.texture(), step_px=256))
        assert math.isnan(seam_ratio(self.texture()))

    def test_one_flat_colour_has_nothing_to_compare_with(self):
        assert math.isnan(seam_ratio(np.full((128, 128, 3), 200, np.uint8), step_px=64))

    def test_a_step_of_nothing_is_an_error(self):
        with pytest.raises(ConfigError, match="at least 1 pixel; found 0"):
            seam_ratio(self.texture(), step_px=0)


class TestSideBySide:
    def test_the_ihc_comes_to_the_grid_of_the_he(self, sample, ihc):
        he = Image(ihc[::2, ::2].copy(), 0.5)
        before, after, mpp = side_by_side(sample.source, he)
        assert before.shape == after.shape == (256, 256, 3)
        assert mpp == 0.5
        assert nuclear_density_agreement(before, after, mpp=mpp) > 0.95

    def test_pictures_of_another_area_are_an_error(self, sample, ihc):
        with pytest.raises(ContractViolation, match=r"they must show the same area"):
            side_by_side(sample.source, Image(ihc[:400], MPP))

    def test_a_picture_without_scale_is_an_error(self, ihc, sample):
        with pytest.raises(ScaleUnknown, match=r"their pixels measure 0.25 and None"):
            side_by_side(sample.source, Image(ihc, None))
