"""A window of a rescaled picture equals the same window of the whole rescaled picture."""

import numpy as np
import pytest

from stainbridge.errors import ScaleUnknown
from stainbridge.records import Image, Labels
from stainbridge.scale import Rescaled, RescaledLabels, rescale


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    return Image(rng.integers(0, 256, (157, 203, 3), np.uint8), mpp=0.25)


@pytest.mark.parametrize("mpp", [0.5, 0.37, 0.2, 0.1, 1.0, 0.2613])
def test_a_window_equals_the_window_of_the_whole(picture, mpp):
    view = Rescaled(picture, mpp)
    whole = view.read(0, 0, *view.shape)
    rng = np.random.default_rng(1)
    for _ in range(25):
        y, x = rng.integers((0, 0), view.shape)
        h, w = rng.integers((1, 1), (view.shape[0] - y + 1, view.shape[1] - x + 1))
        assert np.array_equal(view.read(int(y), int(x), int(h), int(w)), whole[y : y + h, x : x + w])


def test_the_shape_follows_the_scale(picture):
    assert Rescaled(picture, 0.5).shape == (78, 102)
    assert Rescaled(picture, 0.125).shape == (314, 406)


def test_a_flat_picture_stays_flat_to_the_last_row():
    view = Rescaled(Image(np.full((101, 99, 3), 137, np.uint8), mpp=0.25), 0.47)
    assert (view.read(0, 0, *view.shape) == 137).all()


def test_halving_keeps_the_mean(picture):
    view = Rescaled(picture, 0.5)
    assert abs(view.read(0, 0, *view.shape).mean() - picture.pixels.mean()) < 0.5


def test_a_feature_stays_where_it_is_in_micrometres():
    pixels = np.zeros((200, 200, 3), np.uint8)
    pixels[120:140, 60:80] = 255
    view = Rescaled(Image(pixels, mpp=0.25), 0.5)
    rows, columns = np.nonzero(view.read(0, 0, *view.shape)[..., 0] > 127)
    assert rows.mean() == pytest.approx(129.5 / 2 - 0.25, abs=0.1)
    assert columns.mean() == pytest.approx(69.5 / 2 - 0.25, abs=0.1)


@pytest.mark.parametrize("mpp", [None, 0.25, 0.2485])
def test_the_same_scale_is_the_same_source(picture, mpp):
    assert rescale(picture, mpp) is picture


def test_a_picture_without_a_scale_cannot_be_rescaled():
    with pytest.raises(ScaleUnknown, match=r"'image' has no pixel size; 0.5 micrometres"):
        rescale(Image(np.zeros((4, 4, 3), np.uint8)), 0.5)


def test_a_single_pixel_can_be_rescaled():
    view = Rescaled(Image(np.full((1, 1, 3), 9, np.uint8), mpp=0.25), 2.0)
    assert view.shape == (1, 1)
    assert (view.read(0, 0, 1, 1) == 9).all()


def test_labels_come_back_to_the_finer_grid_as_blocks():
    labels = Labels(np.array([[0, 1], [2, 2]], np.int32), mpp=0.5)
    fine = RescaledLabels(labels, (4, 4), 0.25)
    assert np.array_equal(fine.read(0, 0, 4, 4), np.kron(labels.array, np.ones((2, 2), np.int32)))
    assert np.array_equal(fine.read(1, 1, 2, 3), [[0, 1, 1], [2, 2, 2]])


def test_labels_on_the_same_grid_are_unchanged_and_can_be_renumbered():
    labels = Labels(np.array([[0, 1], [2, 2]], np.int32), mpp=0.5)
    assert np.array_equal(RescaledLabels(labels, (2, 2), 0.5).read(0, 0, 2, 2), labels.array)
    renumbered = RescaledLabels(labels, (2, 2), 0.5, np.array([0, 0, 1], np.int32))
    assert np.array_equal(np.asarray(renumbered), [[0, 0], [1, 1]])
