"""The DeepLIIF reader against the published counts and drawings small enough to check by eye."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from stainbridge.datasets.deepliif import TILES, instances, read_sample, split_strip
from stainbridge.errors import ConfigError, UnreadablePicture, UnsupportedPicture

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ihc_deepliif"
real = pytest.mark.skipif(
    not DATA.exists(), reason="needs the DeepLIIF pictures of ../shared/data, which are not shipped"
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def blank(height=40, width=40):
    return np.zeros((height, width, 3), np.uint8)


@real
@pytest.mark.parametrize(
    ("file", "positive", "negative"),
    [("22_2_IHC.png", 10, 125), ("34_3_IHC.png", 21, 79), ("6_2_IHC.png", 22, 24), ("Lung1.png", 11, 50)],
)
@pytest.mark.parametrize("reading", ["interior", "interior+outline"])
def test_published_pictures_hold_the_known_nuclei(file, positive, negative, reading):
    sample = read_sample(DATA / file, reading=reading)
    assert (int(sample.positive.sum()), int((~sample.positive).sum())) == (positive, negative)
    assert sample.source.mpp == 0.25
    assert sample.truth.array.max() == positive + negative


@real
def test_the_outline_is_about_a_third_of_the_foreground():
    seg = split_strip(np.asarray(Pillow.open(DATA / "Lung1.png").convert("RGB")))["Seg"]
    inner, _ = instances(seg, reading="interior")
    whole, _ = instances(seg)
    assert np.array_equal(whole[inner > 0], inner[inner > 0])
    assert 0.29 < 1 - np.count_nonzero(inner) / np.count_nonzero(whole) < 0.38


def test_a_strip_gives_six_tiles_in_order():
    strip = np.repeat(np.arange(6, dtype=np.uint8), 8)[None, :, None].repeat(8, 0).repeat(3, 2)
    tiles = split_strip(strip)
    assert tuple(tiles) == TILES
    assert [np.unique(tile).tolist() for tile in tiles.values()] == [[0], [1], [2], [3], [4], [5]]


@pytest.mark.parametrize(("height", "width"), [(512, 3071), (512, 512), (500, 3072)])
def test_a_strip_of_another_size_is_refused(height, width):
    with pytest.raises(UnsupportedPicture, match=f"six square tiles .* found {width} x {height} px"):
        split_strip(blank(height, width))


def test_interior_reading_ignores_green_and_outline_reading_takes_all_of_it():
    seg = blank()
    seg[5:25, 5:25] = GREEN
    seg[8:22, 8:22] = RED
    inner, positive = instances(seg, reading="interior")
    whole, _ = instances(seg)
    assert positive.tolist() == [True]
    assert np.count_nonzero(inner) == 14 * 14
    assert np.count_nonzero(whole) == 20 * 20


def test_a_shared_outline_is_split_halfway():
    seg = blank()
    seg[10:20, 5:35] = GREEN
    seg[10:20, 5:15] = RED
    seg[10:20, 25:35] = BLUE
    labels, positive = instances(seg)
    assert positive.tolist() == [True, False]
    assert np.count_nonzero(labels == 1) == np.count_nonzero(labels == 2) == 150


def test_red_and_blue_that_touch_stay_two_nuclei():
    seg = blank()
    seg[10:20, 5:15] = RED
    seg[10:20, 15:25] = BLUE
    labels, positive = instances(seg, reading="interior")
    assert positive.tolist() == [True, False]
    assert labels[15, 14] == 1
    assert labels[15, 15] == 2


def test_corners_connect():
    seg = blank()
    seg[5:10, 5:10] = seg[10:15, 10:15] = BLUE
    assert len(instances(seg)[1]) == 1


@pytest.mark.parametrize(("pixels", "count"), [(29, 0), (30, 1)])
def test_specks_under_thirty_pixels_are_dropped(pixels, count):
    seg = blank()
    seg[10, :pixels] = RED
    labels, positive = instances(seg)
    assert len(positive) == labels.max() == count


@pytest.mark.parametrize(
    ("colour", "kind"),
    [((128, 0, 0), True), ((127, 0, 0), None), ((0, 0, 128), False), ((200, 0, 180), True), ((200, 200, 0), None)],
)
def test_off_colour_pixels_count_by_channel_above_127(colour, kind):
    seg = blank()
    seg[10:20, 10:20] = colour
    assert instances(seg)[1].tolist() == ([] if kind is None else [kind])


def test_an_empty_segmentation_has_no_nuclei():
    labels, positive = instances(blank())
    assert labels.dtype == np.int32
    assert not labels.any()
    assert positive.shape == (0,)


def test_an_unknown_reading_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'interior\+outlne'.*Did you mean 'interior\+outline'"):
        instances(blank(), reading="interior+outlne")


def test_a_grey_segmentation_is_refused():
    with pytest.raises(UnsupportedPicture, match=r"expected uint8 \(height, width, 3\); found uint8 \(40, 40\)"):
        instances(blank()[..., 0])


def test_a_picture_without_its_segmentation_says_which_file_is_missing(tmp_path):
    Pillow.fromarray(blank() + 255).save(tmp_path / "a_IHC.png")
    with pytest.raises(UnreadablePicture, match=r"'a_Seg\.png' is not there"):
        read_sample(tmp_path / "a_IHC.png")


def test_a_picture_and_segmentation_of_two_sizes_are_refused(tmp_path):
    Pillow.fromarray(blank() + 255).save(tmp_path / "a_IHC.png")
    Pillow.fromarray(blank(40, 41)).save(tmp_path / "a_Seg.png")
    with pytest.raises(UnsupportedPicture, match=r"one size; found \(40, 40\) and \(40, 41\)"):
        read_sample(tmp_path / "a_IHC.png")
