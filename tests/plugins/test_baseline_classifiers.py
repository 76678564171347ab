"""Positivity by HistomicsTK's rule and by DAB density, against recorded labels and colours mixed on purpose."""

import json

import numpy as np
import pytest
from pydantic import ValidationError
from skimage.data import immunohistochemistry
from skimage.io import imread

from stainbridge.color import DAB, HAEMATOXYLIN, mix, rgb_to_hsi
from stainbridge_plugins.baseline.classifiers import Dab, Hsi
from stainbridge_plugins.baseline.hsi import PositivePixels, positive_pixel_stats, positive_pixels

BROWN, BLUE, WHITE = (139, 90, 43), (110, 110, 190), (255, 255, 255)


def picture(name, shared):
    if name == "skimage_ihc":
        return immunohistochemistry()
    return imread(shared / "data" / "ihc_deepliif" / f"{name}_IHC.png")[..., :3]


@pytest.mark.parametrize("hue", [0.05, 0.83])
@pytest.mark.parametrize("name", ["skimage_ihc", "34_3"])
def test_pixel_labels_and_statistics_equal_those_of_histomicstk(name, hue, shared):
    rgb, parameters = picture(name, shared), PositivePixels(hue_value=hue)
    with np.load(shared / "golden" / "hsi.npz") as recorded:
        assert np.array_equal(positive_pixels(rgb, parameters), recorded[f"{name}_hue{hue}"])
    stats = json.loads((shared / "golden" / "hsi_stats.json").read_text())[f"{name}_hue{hue}"]
    assert positive_pixel_stats(rgb, parameters) == pytest.approx(stats, rel=1e-12)


@pytest.mark.parametrize("name", ["skimage_ihc", "34_3"])
def test_hsi_values_equal_the_recorded_ones(name, shared):
    # The recording was made from uint8 without dividing by 255: intensity is 0..255, and hue holds only where
    # neither G - B nor 2 R - G - B leaves 0..255.
    rgb = picture(name, shared)[::16, ::16]
    red, green, blue = np.moveaxis(rgb.astype(int), -1, 0)
    exact = (green >= blue) & (2 * red - green - blue >= 0) & (2 * red - green - blue <= 255)
    with np.load(shared / "golden" / "hsi.npz") as recorded:
        wanted = recorded[f"{name}_hsi_sub"]
    found = rgb_to_hsi(rgb)
    assert exact.mean() > 0.5
    assert found[exact, 0] == pytest.approx(wanted[exact, 0], abs=1e-6)
    assert found[..., 1:] == pytest.approx(wanted[..., 1:] / (1, 255), abs=1e-6)


def one(rgb, **parameters):
    return int(positive_pixels(np.array(rgb, np.uint8), PositivePixels(**parameters)))


def test_intensity_grades_a_brown_pixel():
    assert [one(np.multiply(BROWN, factor)) for factor in (0.5, 1.0, 1.8)] == [3, 2, 2]
    assert one((230, 180, 130)) == 1
    assert one(BLUE) == one(WHITE) == one((10, 6, 3)) == 0


def test_the_hue_band_wraps_only_when_asked_to():
    reddish = (150, 80, 85)
    assert rgb_to_hsi(np.array(reddish))[0] > 0.975
    assert one(reddish) == 2
    assert one(reddish, wrap=False) == 0


def test_statistics_of_no_positive_pixel_are_zero():
    stats = positive_pixel_stats(np.full((4, 5, 3), 255, np.uint8), PositivePixels())
    assert stats["NumberTotalPixels"] == 20
    assert sum(value for key, value in stats.items() if key != "NumberTotalPixels") == 0


def two_nuclei():
    """Return IHC and labels: nucleus 1 is three quarters brown, nucleus 2 blue with a brown ring outside its mask."""
    ihc = np.full((40, 80, 3), 255, np.uint8)
    labels = np.zeros((40, 80), np.int32)
    labels[10:30, 10:30] = 1
    labels[10:30, 50:70] = 2
    ihc[5:35, 45:75] = BROWN
    ihc[labels > 0] = BLUE
    ihc[10:25, 10:30] = BROWN
    return ihc, labels


def test_the_fraction_of_positive_pixels_is_the_probability():
    assert Hsi().classify(*two_nuclei()) == pytest.approx([0.75, 0.0])


def test_the_dilated_mask_sees_the_ring_of_a_membrane_stain():
    p = Hsi(Hsi.Config(rule="dilated", dilate_px=5)).classify(*two_nuclei())
    assert p[1] > 0.4
    assert p[0] < 0.75


def test_the_mean_colour_is_inside_the_band_or_not():
    assert Hsi(Hsi.Config(rule="mean")).classify(*two_nuclei()).tolist() == [1.0, 0.0]


def test_the_mean_hue_of_two_reds_is_red_across_the_wrap():
    ihc = np.array([[(150, 80, 85), (150, 85, 80)]], np.uint8)
    labels = np.ones((1, 2), np.int32)
    assert Hsi(Hsi.Config(rule="mean", hue_value=0.0, hue_width=0.01)).classify(ihc, labels).tolist() == [1.0]


def test_the_operating_point_is_configuration():
    assert Hsi(Hsi.Config(threshold=0.45)).threshold == 0.45


def stained(dab):
    ihc = mix(np.array([[(0.3, amount) for amount in dab]]), (HAEMATOXYLIN, DAB))
    return ihc, np.arange(1, len(dab) + 1, dtype=np.int32)[np.newaxis]


def test_dab_density_is_measured():
    ihc, labels = stained([0.0, 0.25, 0.5, 0.9])
    assert Dab().densities(ihc, labels) == pytest.approx([0, 0.25, 0.5, 0.9], abs=0.02)


def test_a_nucleus_is_positive_from_the_threshold_up():
    dab = Dab()
    ihc, labels = stained([0.15, 0.25])
    p = dab.classify(ihc, labels)
    assert (p >= dab.threshold).tolist() == [False, True]
    assert p == pytest.approx(1 - 10.0 ** -np.array([0.15, 0.25]), abs=0.02)
    assert dab.threshold == pytest.approx(1 - 10**-0.2)
    assert (p >= Dab(Dab.Config(thresholds_od=(0.3, 0.4, 0.6))).threshold).tolist() == [False, False]


@pytest.mark.parametrize(
    "plugin", [Hsi(), Hsi(Hsi.Config(rule="dilated")), Hsi(Hsi.Config(rule="mean")), Dab()], ids=lambda p: p.name
)
def test_no_nuclei_give_no_probabilities(plugin):
    p = plugin.classify(np.zeros((5, 6, 3), np.uint8), np.zeros((5, 6), np.int32))
    assert p.shape == (0,)
    assert p.dtype == np.float64


@pytest.mark.parametrize("name", ["threshold_1_od", "threshold_2_od", "threshold_3_od"])
def test_dab_takes_no_threshold_that_would_change_nothing(name):
    with pytest.raises(ValidationError, match=name):
        Dab.Config(**{name: 0.5})


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValidationError, match="hue_valu"):
        Hsi.Config(hue_valu=0.1)
