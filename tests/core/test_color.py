"""Colour arithmetic against values worked by hand, and against the dyes' own definition."""

import numpy as np
import pytest

from stainbridge.color import DAB, EOSIN, HAEMATOXYLIN, mix, optical_density, rgb_to_hsi, unmix
from stainbridge.errors import ConfigError


def pixel(*rgb):
    return np.array(rgb, np.uint8)


def test_white_has_no_density_and_a_tenth_of_the_light_has_one():
    assert optical_density(pixel(255, 255, 255)).tolist() == [0, 0, 0]
    assert optical_density(np.array([25.5, 255.0, 2.55])) == pytest.approx([1, 0, 2], abs=1e-6)


def test_black_is_as_dense_as_a_value_of_one():
    assert optical_density(pixel(0, 1, 0)) == pytest.approx(np.log10(255), abs=1e-6)


def test_glass_and_what_is_brighter_has_no_density():
    assert optical_density(pixel(240, 250, 230), background=(240, 240, 240)) == pytest.approx(
        [0, 0, 0.018483], abs=1e-5
    )


def test_whole_numbers_and_fractions_agree():
    values = np.arange(256, dtype=np.uint8).reshape(-1, 1).repeat(3, axis=1)
    assert np.array_equal(optical_density(values), optical_density(values.astype(np.float64)))


@pytest.mark.parametrize("stains", [(HAEMATOXYLIN,), (HAEMATOXYLIN, DAB), (HAEMATOXYLIN, EOSIN, DAB)])
def test_unmixing_undoes_mixing(stains):
    amounts = np.random.default_rng(0).uniform(0.05, 0.6, (40, 30, len(stains)))
    assert unmix(mix(amounts, stains), stains) == pytest.approx(amounts, abs=0.02)


def test_two_stains_are_the_least_squares_solution():
    rgb = np.random.default_rng(1).integers(1, 255, (200, 3), dtype=np.uint8)
    unit = np.array([stain / np.linalg.norm(stain) for stain in (HAEMATOXYLIN, DAB)])
    wanted = np.linalg.lstsq(unit.T, -np.log10(rgb / 255.0).T, rcond=None)[0].T
    assert unmix(rgb, (HAEMATOXYLIN, DAB)) == pytest.approx(wanted, abs=1e-5)


def test_a_window_unmixes_as_the_whole_does():
    rgb = np.random.default_rng(2).integers(0, 256, (67, 91, 3), dtype=np.uint8)
    whole = unmix(rgb, (HAEMATOXYLIN, DAB))
    assert np.array_equal(unmix(rgb[11:40, 5:6], (HAEMATOXYLIN, DAB)), whole[11:40, 5:6])


@pytest.mark.parametrize("stains", [[], [[1, 2]], [HAEMATOXYLIN, 2 * HAEMATOXYLIN], [[0, 0, 0]], np.eye(4, 3)])
def test_stains_that_cannot_be_told_apart_are_refused(stains):
    with pytest.raises(ConfigError, match=r"1 to 3 independent vectors \(red, green, blue\); found \["):
        unmix(pixel(1, 2, 3), stains)


def test_stain_vectors_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        DAB[0] = 1


@pytest.mark.parametrize(
    ("rgb", "hsi"),
    [
        ((139, 90, 43), (0.0814, 0.5257, 0.3556)),
        ((255, 0, 0), (0, 1, 1 / 3)),
        ((0, 255, 0), (1 / 3, 1, 1 / 3)),
        ((0, 0, 255), (2 / 3, 1, 1 / 3)),
        ((80, 80, 80), (0, 0, 80 / 255)),
        ((0, 0, 0), (0, 0, 0)),
    ],
)
def test_hue_saturation_intensity_of_known_colours(rgb, hsi):
    assert rgb_to_hsi(pixel(*rgb)) == pytest.approx(hsi, abs=1e-4)


@pytest.mark.parametrize(
    ("stain", "low", "high"), [(HAEMATOXYLIN, 0.63, 0.69), (DAB, 0.035, 0.065), (EOSIN, 0.82, 0.95)]
)
def test_each_dye_has_its_hue(stain, low, high):
    for amount in (0.3, 0.6, 1.0):
        assert low < rgb_to_hsi(mix(np.array([amount]), [stain]))[0] < high


def test_a_fourth_channel_is_ignored():
    assert rgb_to_hsi(pixel(139, 90, 43, 7)).tolist() == rgb_to_hsi(pixel(139, 90, 43)).tolist()
