"""The identity, and colour deconvolution with a scale for each dye."""

import numpy as np
import pytest
from pydantic import ValidationError
from skimage.data import immunohistochemistry

from stainbridge.color import DAB, HAEMATOXYLIN, mix, optical_density, unmix
from stainbridge_plugins.baseline.translators import Deconvolution, Identity


def disc(y, x, radius, shape=(120, 240)):
    rows, columns = np.indices(shape)
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


PALE, DARK = disc(60, 60, 20), disc(60, 180, 20)


def pale_beside_dark():
    """Return a batch of one: a pale blue nucleus and a dark brown one on glass with a little unspecific stain."""
    amounts = np.full((*PALE.shape, 2), 0.01)
    amounts[PALE] = (0.3, 0.0)
    amounts[DARK] = (0.2, 1.8)
    return mix(amounts, (HAEMATOXYLIN, DAB), background=245.0)[np.newaxis]


def red_density(he):
    return optical_density(he, 245.0)[0, ..., 0]


def test_identity_returns_an_equal_picture_of_its_own():
    ihc = pale_beside_dark()
    he = Identity().translate(ihc)
    assert np.array_equal(he, ihc)
    assert not np.shares_memory(he, ihc)


def test_a_pale_blue_nucleus_stays_visible_beside_a_dark_brown_one():
    ihc = pale_beside_dark()
    density = red_density(Deconvolution().calibrate(ihc).translate(ihc))
    assert density[PALE].mean() > 0.7 * density[DARK].mean()
    assert density[PALE].mean() > density[~(PALE | DARK)].mean() + 0.3


def test_one_common_scale_would_lose_the_pale_nucleus():
    ihc = pale_beside_dark()
    common = Deconvolution(Deconvolution.Config(haematoxylin_od=1.8, dab_od=1.8, glass=(245, 245, 245)))
    density = red_density(common.translate(ihc))
    assert density[PALE].mean() < 0.45 * density[DARK].mean()


def test_nuclei_turn_blue_purple_and_glass_stays_white():
    ihc = pale_beside_dark()
    he = Deconvolution().calibrate(ihc).translate(ihc)[0].astype(int)
    for nucleus in (PALE, DARK):
        red, green, blue = he[nucleus].mean(axis=0)
        assert blue > red > green
    assert he[~(PALE | DARK)].min() > 225


def test_brown_cytoplasm_turns_pink_when_the_marker_is_cytoplasmic():
    amounts = np.full((*PALE.shape, 2), (0.0, 0.5))
    amounts[PALE] = (0.4, 0.1)
    ihc = mix(amounts, (HAEMATOXYLIN, DAB), background=245.0)[np.newaxis]
    he = Deconvolution(Deconvolution.Config(dab="cytoplasmic")).calibrate(ihc).translate(ihc)[0]
    red, green, blue = he[~PALE].mean(axis=0)
    assert red > blue > green
    assert he[PALE].mean() < he[~PALE].mean() - 50


def test_scales_come_from_the_sample_and_not_from_the_tile():
    ihc = immunohistochemistry()[np.newaxis]
    fitted = Deconvolution().calibrate(ihc)
    whole = fitted.translate(ihc)
    assert np.array_equal(fitted.translate(ihc[:, 100:150, 37:300]), whole[:, 100:150, 37:300])


def test_calibration_leaves_the_translator_as_it_was():
    before = Deconvolution()
    after = before.calibrate(pale_beside_dark())
    assert before.config == Deconvolution.Config()
    assert after.config.dab_od == pytest.approx(1.8, abs=0.15)
    assert after.config.haematoxylin_od == pytest.approx(0.3, abs=0.05)


def test_a_slide_without_dab_keeps_the_configured_scale():
    amounts = np.where(PALE[..., np.newaxis], (0.5, 0.0), (0.0, 0.0))
    ihc = mix(amounts, (HAEMATOXYLIN, DAB))[np.newaxis]
    assert Deconvolution().calibrate(ihc).config.dab_od == Deconvolution.Config().dab_od


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 30, 20, 3)])
def test_uniform_pictures_of_any_size_translate(shape, value):
    ihc = np.full(shape, value, np.uint8)
    he = Deconvolution().calibrate(ihc).translate(ihc)
    assert he.shape == shape
    assert he.dtype == np.uint8


def test_the_input_is_not_written_to():
    ihc = pale_beside_dark()
    ihc.setflags(write=False)
    Deconvolution().calibrate(ihc).translate(ihc)


def test_virtual_nuclei_hold_haematoxylin_where_the_ihc_holds_either_dye():
    ihc = immunohistochemistry()[np.newaxis]
    fitted = Deconvolution().calibrate(ihc)
    dyes = np.maximum(unmix(ihc, (HAEMATOXYLIN, DAB), background=fitted.config.glass), 0).sum(axis=-1)
    density = optical_density(fitted.translate(ihc), 245.0)[..., 0]
    assert np.corrcoef(dyes.ravel(), density.ravel())[0, 1] > 0.8


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ValidationError, match="haematoxylin_od"):
        Deconvolution.Config(haematoxylin_od=0)
