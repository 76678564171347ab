"""Synthetic pictures hold what their truth says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.color import rgb2hed
from skimage.measure import regionprops

from stainbridge.errors import ConfigError
from stainbridge.records import check_label_map
from stainbridge.testing import blank_glass, dark_tissue, synthetic_he, synthetic_ihc, synthetic_labels


def test_one_seed_gives_one_picture_and_another_seed_another():
    first, again, other = (synthetic_ihc(shape=(96, 96), nuclei=4, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.source.pixels, again.source.pixels)
    assert np.array_equal(first.truth.array, again.truth.array)
    assert np.array_equal(first.positive, again.positive)
    assert not np.array_equal(first.source.pixels, other.source.pixels)


def test_a_picture_holds_as_many_nuclei_as_asked_and_the_asked_share_is_positive():
    sample = synthetic_ihc(shape=(300, 400), nuclei=37, positive_fraction=0.4)
    assert sample.source.shape == (300, 400)
    assert sample.source.mpp == sample.truth.mpp == 0.25
    assert check_label_map(sample.truth.array, "truth") == 37
    assert sample.positive.shape == (37,)
    assert sample.positive.sum() == 15


def test_each_nucleus_is_one_object_that_touches_no_other():
    labels = synthetic_labels((400, 400), 50, rng=1).array
    pieces, count = ndimage.label(labels > 0, structure=np.ones((3, 3)))
    assert count == 50
    assert all(len(np.unique(pieces[labels == label])) == 1 for label in range(1, 51))


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_whole_nuclei_are_6_to_12_micrometres_across(mpp):
    labels = synthetic_labels((500, 500), 60, rng=2, mpp=mpp).array
    whole = [r for r in regionprops(labels) if min(r.bbox[:2]) > 0 and max(r.bbox[2:]) < 500]
    diameters = np.array([region.equivalent_diameter_area for region in whole]) * mpp
    assert diameters.min() > 5.5
    assert diameters.max() < 12.5
    assert diameters.std() > 1


def test_the_half_extent_is_the_longest_way_from_a_centroid_to_a_pixel():
    made = synthetic_labels((300, 300), 30, rng=5)
    reach = [np.abs(region.coords - region.centroid).max() for region in regionprops(made.array)]
    assert made.half_extent_px == pytest.approx(max(reach))


def test_positive_nuclei_are_brown_and_negative_ones_blue_by_an_independent_unmixing():
    sample = synthetic_ihc(nuclei=80, positive_fraction=0.5, seed=7)
    hed = rgb2hed(sample.source.pixels)
    mean = np.array([hed[sample.truth.array == label].mean(axis=0) for label in range(1, 81)])
    ground = hed[sample.truth.array == 0].mean(axis=0)
    assert mean[sample.positive, 2].min() > mean[~sample.positive, 2].max()
    assert mean[~sample.positive, 0].min() > 2 * ground[0]
    assert mean[~sample.positive, 0].mean() > mean[sample.positive, 0].mean()


def test_he_has_blue_nuclei_over_pink_tissue():
    sample = synthetic_he(shape=(256, 256), nuclei=25)
    inside = sample.source.pixels[sample.truth.array > 0].mean(axis=0)
    outside = sample.source.pixels[sample.truth.array == 0].mean(axis=0)
    assert inside.mean() < outside.mean() - 40
    assert inside[0] < inside[2]
    assert outside[1] < min(outside[0], outside[2]) - 20
    assert sample.positive is None


def test_glass_is_near_white_and_a_fold_near_black():
    assert blank_glass().shape == dark_tissue().shape == (256, 256, 3)
    assert blank_glass().min() > 220
    assert dark_tissue().max() < 60


def test_a_picture_without_nuclei_is_bare_tissue():
    sample = synthetic_ihc(shape=(64, 64), nuclei=0)
    assert sample.truth.array.max() == 0
    assert len(sample.positive) == 0


def test_more_nuclei_than_fit_is_an_error_that_says_how_many_do():
    with pytest.raises(ConfigError, match=r"99 nuclei were asked for in 64 x 64 px at 0.25 um per pixel; only \d fit"):
        synthetic_labels((64, 64), 99)
