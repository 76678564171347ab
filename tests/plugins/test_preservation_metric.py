"""The preservation metric compares on the grid of the virtual H&E, and pools nuclei, not pictures."""

import math

import numpy as np
import pytest

from stainbridge import Image, Labels, Nuclei, Result, build
from stainbridge.testing import synthetic_ihc
from stainbridge_plugins.metrics.preservation import Preservation


@pytest.fixture(scope="module")
def sample():
    return synthetic_ihc(shape=(384, 384), nuclei=40, positive_fraction=0.4, seed=2)


@pytest.fixture(scope="module")
def he(sample):
    pixels = sample.source.pixels[None]
    return build("translator", "deconvolution/nuclear").plugin.calibrate(pixels).translate(pixels)[0]


def values(sample, he, provenance=None):
    columns = ("label", "y", "x", "area_um2", "y0", "x0", "y1", "x1", "p_positive", "positive", "grade", "clipped")
    none = Nuclei.from_columns(dict.fromkeys(columns, np.zeros(0)))
    labels = Labels(np.zeros(sample.source.shape, np.int32), sample.source.mpp)
    return Preservation().update(Result(sample.source, labels, none, he, {}, provenance or {}), sample)


def test_an_he_of_half_the_resolution_keeps_its_nuclei(sample, he):
    halved = np.rint(he.reshape(192, 2, 192, 2, 3).mean(axis=(1, 3))).astype(np.uint8)
    fine, coarse = values(sample, Image(he, 0.25)), values(sample, Image(halved, 0.5))
    assert coarse["centroid_recall"] > 0.8
    assert coarse["density_agreement"] == pytest.approx(fine["density_agreement"], abs=0.1)


def test_moving_everything_by_two_micrometres_shows_in_the_density(sample, he):
    moved = values(sample, Image(np.roll(he, 8, axis=1), 0.25))
    assert moved["density_agreement"] < values(sample, Image(he, 0.25))["density_agreement"] - 0.15


def test_seams_are_measured_where_the_result_says_they_are(sample, he):
    drifting = he.astype(int)
    drifting[:, 192:] -= 25
    picture = Image(np.clip(drifting, 0, 255).astype(np.uint8), 0.25)
    assert values(sample, picture, {"translation": {"core_px": 192}})["seam_ratio"] > 1.5
    assert values(sample, picture, {"translation": {"core_px": 160}})["seam_ratio"] < 1.3
    assert math.isnan(values(sample, picture)["seam_ratio"])
    assert math.isnan(values(sample, picture, {"translation": {"core_px": 1024}})["seam_ratio"])


def test_shares_are_pooled_over_nuclei_and_pictures_without_a_translation_are_left_out():
    nan = math.nan
    rows = {
        "before": [10, 30, nan],
        "after": [5, 45, nan],
        "kept": [5, 25, nan],
        "brown": [0, 20, nan],
        "brown_kept": [0, 15, nan],
        "density_agreement": [0.9, 0.7, nan],
        "brown_density": [nan, 1.0, nan],
        "seam_ratio": [nan, nan, nan],
    }
    images = {name: np.array(column, np.float64) for name, column in rows.items()}
    pooled = Preservation().pool(images, np.array([[1.0, 1, 1], [2, 1, 0], [0, 0, 3]]))
    assert pooled["count_ratio"][:2].tolist() == [50 / 40, 55 / 50]
    assert pooled["centroid_recall"][:2].tolist() == [30 / 40, 35 / 50]
    assert pooled["brown_retention"][:2].tolist() == [0.75, 0.75]
    assert pooled["density_agreement"][:2] == pytest.approx([0.8, 2.5 / 3])
    assert pooled["images_translated"].tolist() == [2, 3, 0]
    undefined = {name: column[2] for name, column in pooled.items() if name != "images_translated"}
    assert all(map(math.isnan, undefined.values()))
    assert np.isnan(pooled["seam_ratio"]).all()
