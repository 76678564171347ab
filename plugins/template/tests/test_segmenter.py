"""What this segmenter promises beyond the contract."""

import numpy as np
from stainbridge.testing import synthetic_ihc

from TEMPLATE_PACKAGE.segmenter import MPP, TEMPLATE_CLASS


def test_brown_and_blue_nuclei_are_found_alike():
    sample = synthetic_ihc(shape=(256, 256), nuclei=60, positive_fraction=0.5, mpp=MPP, seed=1)
    found = TEMPLATE_CLASS().segment(sample.source.pixels[None])[0] > 0
    covered = np.array([found[sample.truth.array == label].mean() for label in range(1, 61)])
    assert np.median(covered[sample.positive]) > 0.7
    assert np.median(covered[~sample.positive]) > 0.7


def test_a_larger_minimum_leaves_small_objects_out():
    pixels = synthetic_ihc(shape=(256, 256), nuclei=60, mpp=MPP).source.pixels[None]
    strict = TEMPLATE_CLASS(TEMPLATE_CLASS.Config(area_minimum_um2=60.0)).segment(pixels)[0]
    assert 0 < strict.max() < TEMPLATE_CLASS().segment(pixels)[0].max()
    assert np.bincount(strict.ravel()).min() * MPP**2 >= 60.0
