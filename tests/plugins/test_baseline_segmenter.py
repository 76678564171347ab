"""The watershed segmenter: known nuclei are found, tiles agree with the whole, and nothing is found where nothing is."""

import numpy as np
import pytest
from skimage.data import immunohistochemistry
from skimage.io import imread
from skimage.measure import regionprops

from stainbridge.color import DAB, EOSIN, HAEMATOXYLIN, mix
from stainbridge.datasets.deepliif import read_sample
from stainbridge.overlap import match_counts, overlaps
from stainbridge.records import check_label_map
from stainbridge.scale import Rescaled
from stainbridge_plugins.baseline.segmenter import Watershed
from stainbridge_plugins.baseline.splitting import Shape, best_components, without_small_holes

SIDE = 300


def centres():
    grid = np.arange(25, SIDE - 20, 42)
    return [(int(y), int(x)) for y in grid for x in grid]


def truth():
    """Return ellipses of 5 by 3.5 um at 0.5 um/px, one beside the other."""
    labels = np.zeros((SIDE, SIDE), np.int32)
    rows, columns = np.indices(labels.shape)
    for number, (y, x) in enumerate(centres(), 1):
        labels[((rows - y) / 10) ** 2 + ((columns - x) / 7) ** 2 < 1] = number
    return labels


def ihc(labels):
    """Stain every third nucleus dark brown and the others in blues from pale to dark."""
    number = labels[labels > 0]
    amounts = np.full((*labels.shape, 2), 0.02)
    amounts[labels > 0] = np.where(
        (number % 3 == 0)[:, np.newaxis], (0.2, 1.5), np.stack([0.2 + number % 5 * 0.1, 0 * number], 1)
    )
    return _noisy(mix(amounts, (HAEMATOXYLIN, DAB)))


def he(labels):
    amounts = np.full((*labels.shape, 2), (0.08, 0.35))
    amounts[labels > 0] = (0.9, 0.2)
    return _noisy(mix(amounts, (HAEMATOXYLIN, EOSIN)))


def _noisy(rgb):
    noise = np.random.default_rng(0).normal(0, 4, rgb.shape)
    return np.clip(rgb + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("stain", [ihc, he])
@pytest.mark.parametrize("wanted", ["he", "ihc"])
def test_every_nucleus_is_found_once_whatever_its_colour(stain, wanted):
    labels = truth()
    found = Watershed(Watershed.Config(stain=wanted)).segment(stain(labels)[np.newaxis])[0]
    assert match_counts(overlaps(labels, found), [50]).tolist() == [[len(centres()), 0, 0]]


def test_touching_nuclei_are_split():
    rows, columns = np.indices((100, 100))
    # Nuclei are domes: thinner, and so paler, towards their outline.
    dome = np.maximum(*(np.clip(1.2 - np.hypot(rows - 50, columns - x) / 12, 0, 1) for x in (41, 59)))
    picture = mix(np.stack([0.7 * dome, 0 * dome], -1), (HAEMATOXYLIN, DAB))
    found = Watershed().segment(picture[np.newaxis])[0]
    assert found.max() == 2
    assert len({int(found[50, 41]), int(found[50, 59]), 0}) == 3


def objects(labels, y=0, x=0):
    """Return each object as its pixels in the coordinates of the whole picture, by centroid."""
    pixels = [region.coords + np.array([y, x]) for region in regionprops(labels)]
    return {tuple(p.mean(axis=0)): frozenset(map(tuple, p.tolist())) for p in pixels}


def inside(found, y, x, core):
    return {pixels for (cy, cx), pixels in found.items() if y <= cy < y + core and x <= cx < x + core}


@pytest.mark.parametrize(
    ("picture", "core", "shift"),
    [(immunohistochemistry(), 192, 37), (ihc(truth()), 128, 0), (ihc(truth()), 150, 61)],
    ids=["real", "synthetic", "synthetic shifted"],
)
def test_a_tile_with_its_halo_gives_the_nuclei_of_the_whole(picture, core, shift):
    fitted = Watershed().calibrate(picture[np.newaxis])
    halo = fitted.wants.halo
    whole = objects(fitted.segment(picture[np.newaxis])[0])
    seen = 0
    for y in range(-shift, picture.shape[0], core):
        for x in range(-shift, picture.shape[1], core):
            top, left = max(0, y - halo), max(0, x - halo)
            tile = picture[top : y + core + halo, left : x + core + halo]
            here = inside(objects(fitted.segment(tile[np.newaxis])[0], top, left), y, x, core)
            assert here == inside(whole, y, x, core)
            seen += len(here)
    assert seen == len(whole) > 40


@pytest.mark.parametrize("value", [0, 128, 243, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (64, 64)])
def test_a_uniform_picture_has_no_nuclei(shape, value):
    assert not Watershed().segment(np.full((1, *shape, 3), value, np.uint8)).any()


def test_glass_with_noise_has_no_nuclei():
    glass = np.random.default_rng(3).normal(240, 3, (1, 200, 200, 3)).astype(np.uint8)
    assert not Watershed().segment(glass).any()


def test_images_of_a_batch_do_not_see_each_other():
    one, two = ihc(truth()), he(truth())
    labels = Watershed().segment(np.stack([one, two]))
    assert labels.dtype == np.int32
    for image, alone in zip((one, two), labels, strict=True):
        check_label_map(alone, "labels")
        assert np.array_equal(Watershed().segment(image[np.newaxis])[0], alone)


def test_calibration_leaves_the_segmenter_as_it_was():
    picture = ihc(truth())[np.newaxis]
    segmenter = Watershed()
    segmenter.calibrate(np.full((1, 50, 50, 3), 255, np.uint8))
    assert np.array_equal(segmenter.segment(picture), Watershed().segment(picture))


def test_a_brown_cytoplasm_is_not_taken_for_nuclei():
    """On scikit-image's cytokeratin picture nothing as large as a brown gland may be found."""
    labels = Watershed().segment(immunohistochemistry()[np.newaxis])[0]
    areas_um2 = np.bincount(labels.ravel())[1:] * 0.25
    assert len(areas_um2) > 150
    assert np.median(areas_um2) < 60
    assert areas_um2.max() < 400


def test_two_discs_are_preferred_to_their_union():
    rows, columns = np.indices((60, 90))
    relief = np.maximum(*(30 - np.hypot(rows - 30, columns - x) for x in (30, 56))).astype(np.float32) / 30
    shape = Shape(least_px=20, most_px=4000, longest_px=80, hole_px=10, reach_px=5)
    mask = relief > 0.5
    seeds = best_components(relief, mask, np.array([-np.inf, 0.55, 0.6, 0.7]), shape)
    assert seeds.max() == 2
    assert seeds[30, 30] != seeds[30, 56]


def test_only_small_and_closed_holes_are_filled():
    mask = np.ones((20, 30), bool)
    mask[3:5, 3:5] = mask[10:16, 10:16] = mask[0, 20:22] = False
    filled = without_small_holes(mask, most_px=4)
    assert filled[3:5, 3:5].all()
    assert not filled[10:16, 10:16].any()
    assert not filled[0, 20:22].any()


def test_real_nuclei_are_found_well_enough(shared):
    """The floor that learned combinations have to beat: DeepLIIF's tiles, interior and outline, IoU 0.5, no tuning per picture."""
    counts, dice = np.zeros(3, int), []
    for name in ("22_2_IHC", "34_3_IHC", "6_2_IHC", "Lung1"):
        sample = read_sample(shared / "data" / "ihc_deepliif" / f"{name}.png")
        view = Rescaled(sample.source, 0.5)
        small = Watershed().segment(view.read(0, 0, *view.shape)[np.newaxis])[0]
        found = small.repeat(2, axis=0).repeat(2, axis=1)
        counts += match_counts(overlaps(sample.truth.array, found), [50])[0]
        both, one, other = ((a & b).sum() for a, b in _pairs(sample.truth.array > 0, found > 0))
        dice.append(2 * both / (one + other))
    tp, fp, fn = counts
    assert 2 * tp / (2 * tp + fp + fn) >= 0.66
    assert np.mean(dice) >= 0.77


def test_real_h_and_e_is_not_cut_into_crumbs(shared):
    counts = np.zeros(3, int)
    for path in sorted((shared / "data" / "he_monuseg").glob("*_labels.png"))[:3]:
        truth_map = imread(path).astype(np.int32)
        rgb = imread(path.with_name(path.name.replace("_labels", "")))[..., :3]
        small = rgb.reshape(256, 2, 256, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
        found = Watershed().segment(small[np.newaxis])[0].repeat(2, axis=0).repeat(2, axis=1)
        counts += match_counts(overlaps(truth_map, found), [50])[0]
    tp, fp, fn = counts
    assert 2 * tp / (2 * tp + fp + fn) >= 0.65
    assert tp + fp < 1.3 * (tp + fn)


def _pairs(a, b):
    return (a, b), (a, a), (b, b)
