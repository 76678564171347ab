"""The table equals scikit-image's regionprops."""

import numpy as np
import pytest
from skimage.measure import regionprops_table

from stainbridge.measure import boxes, regions, stain_densities
from stainbridge.testing.synthetic import synthetic_labels


def test_the_table_equals_regionprops():
    labels = synthetic_labels((400, 500), 200, rng=2, mpp=0.4).array
    values = np.random.default_rng(0).random((400, 500, 3)).astype(np.float32)
    ours = regions(labels, values)
    theirs = regionprops_table(labels, values, properties=("area", "centroid", "bbox", "mean_intensity"))
    assert np.array_equal(ours.area_px, theirs["area"])
    assert np.allclose(ours.y, theirs["centroid-0"], rtol=1e-12)
    assert np.allclose(ours.x, theirs["centroid-1"], rtol=1e-12)
    assert np.array_equal(boxes(labels), np.stack([theirs[f"bbox-{i}"] for i in range(4)], axis=1))
    for channel in range(3):
        assert np.allclose(ours.means[:, channel], theirs[f"mean_intensity-{channel}"], rtol=1e-5)


def test_an_absent_id_has_no_area_and_no_centroid():
    found = regions(np.array([[1, 0, 3]], np.int32), count=4)
    assert found.area_px.tolist() == [1, 0, 1, 0]
    assert np.isnan(found.y[[1, 3]]).all()
    assert found.x[[0, 2]].tolist() == [0.0, 2.0]


def test_no_labels_give_an_empty_table():
    found = regions(np.zeros((5, 5), np.int32), np.zeros((5, 5, 2), np.float32))
    assert found.area_px.shape == (0,)
    assert found.means.shape == (0, 2)
    assert boxes(np.zeros((5, 5), np.int32)).shape == (0, 4)


def test_dab_brown_has_more_dab_than_haematoxylin_and_blue_the_reverse():
    haematoxylin, dab = np.moveaxis(stain_densities(np.array([[[139, 90, 43], [100, 110, 170]]], np.uint8)), -1, 0)[
        :, 0
    ]
    assert dab[0] > 0.3 > haematoxylin[0]
    assert haematoxylin[1] > 0.2 > dab[1]


def test_white_glass_has_no_stain():
    assert stain_densities(np.full((2, 2, 3), 255, np.uint8)) == pytest.approx(0.0, abs=1e-6)
