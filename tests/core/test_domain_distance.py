"""A distance to H&E that is near zero for H&E, grows with every fault, and needs no network."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from stainbridge.color import DAB, EOSIN, HAEMATOXYLIN, mix, unmix
from stainbridge.testing.synthetic import blank_glass, synthetic_he, synthetic_ihc
from stainbridge.training import domain
from stainbridge.training.domain import Domain, features, kid, mmd2, windows_of, with_tissue

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def he():
    """Eight fields of one laboratory."""
    return [synthetic_he(shape=(256, 256), nuclei=24 + 3 * (seed % 4), seed=seed).source.pixels for seed in range(8)]


@pytest.fixture(scope="module")
def side(he):
    return Domain.of(he[:4])


@pytest.fixture(scope="module")
def ihc():
    return [synthetic_ihc(shape=(256, 256), nuclei=28, seed=seed).source.pixels for seed in range(3)]


def cut(pictures):
    windows = np.concatenate([windows_of(one) for one in pictures])
    return windows[with_tissue(windows)]


def restained(ihc):
    """Turn both dyes of IHC into haematoxylin over uneven eosin, seen by a camera: what a good translator gives."""
    blue, brown = np.moveaxis(unmix(ihc, (HAEMATOXYLIN, DAB), background=245), -1, 0)
    nuclear = gaussian_filter(np.clip(1.8 * blue + brown, 0.06, 1.1), 0.7)
    camera = np.random.default_rng(3)
    uneven = gaussian_filter(camera.standard_normal(nuclear.shape), 4)
    eosin = 0.22 * np.clip(1 + 0.3 * uneven / uneven.std(), 0, None)
    light = mix(np.stack([nuclear, eosin], axis=-1), (HAEMATOXYLIN, EOSIN), background=245)
    return np.clip(np.rint(light + camera.normal(0, 2, light.shape)), 0, 255).astype(np.uint8)


class TestDiscrepancy:
    def test_a_case_worked_by_hand(self):
        # k(0, 0) = 1, k(1, 1) = (1 + 1)^3 = 8, k(0, 1) = 1: 1 + 8 - 2.
        assert mmd2(np.zeros((2, 1)), np.ones((3, 1))) == pytest.approx(7.0)

    def test_it_equals_the_sums_of_the_definition(self):
        x, y = RNG.normal(size=(7, 4)), RNG.normal(1, 2, size=(5, 4))

        def mean(a, b, same):
            pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
            return math.fsum((float(np.dot(a[i], b[j])) / 4 + 1) ** 3 for i, j in pairs) / len(pairs)

        assert mmd2(x, y) == pytest.approx(mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False))

    def test_it_equals_the_distance_of_the_means_in_the_space_of_the_kernel(self):
        # In one dimension (xy + 1)^3 is the product of (1, sqrt3 x, sqrt3 x^2, x^3) with the same of y.
        x, y = RNG.normal(size=400), RNG.normal(0.7, 1.3, size=300)
        a, b = (np.stack([v**0, 3**0.5 * v, 3**0.5 * v**2, v**3], axis=1) for v in (x, y))
        biased = float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum())
        surplus = sum(
            (float((c**2).sum(axis=1).mean()) - float((c.mean(axis=0) ** 2).sum())) / (len(c) - 1) for c in (a, b)
        )
        assert mmd2(x[:, None], y[:, None]) == pytest.approx(biased - surplus)

    def test_samples_of_one_distribution_are_at_zero_on_average_and_not_above(self):
        values = [mmd2(*RNG.normal(size=(2, 20, 6))) for _ in range(400)]
        assert abs(np.mean(values)) < 3 * np.std(values) / 20
        assert min(values) < 0

    def test_the_same_seed_draws_the_same(self):
        x, y = RNG.normal(size=(150, 3)), RNG.normal(size=(120, 3))
        first, second = (kid(x, y, rng=np.random.default_rng(1)) for _ in range(2))
        assert first == second
        assert first.kid == pytest.approx(mmd2(x, y), abs=0.05)

    def test_with_too_few_windows_it_is_not_defined_and_says_why(self):
        found = kid(np.zeros((31, 3)), np.zeros((80, 3)), rng=RNG)
        assert math.isnan(found.kid)
        assert found.reason == "31 windows of 64 px with tissue on one side; 32 are needed"


class TestFeatures:
    def test_a_window_alone_and_among_others_is_the_same(self, he):
        windows = windows_of(he[0])
        assert features(windows[3:4]) == pytest.approx(features(windows)[3:4], abs=1e-5)

    def test_more_windows_than_a_block_are_all_there(self, he, monkeypatch):
        windows = windows_of(he[0])
        whole = features(windows)
        monkeypatch.setattr(domain, "_BLOCK", 5)
        assert features(windows) == pytest.approx(whole, abs=1e-5)

    def test_no_window_has_no_features(self):
        assert features(np.zeros((0, 64, 64, 3), np.uint8)).shape == (0, 89)

    @pytest.mark.parametrize("level", [0, 128, 255])
    def test_one_flat_colour_has_finite_features(self, level):
        found = features(np.full((2, 64, 64, 3), level, np.uint8))
        assert found.shape == (2, 89)
        assert np.isfinite(found).all()

    def test_one_colour_has_one_hue(self):
        found = domain._hues(
            *(lambda d: (d, d.mean(axis=-1)))(domain.optical_density(np.full((1, 8, 8, 3), (200, 90, 160), np.uint8)))
        )
        assert sorted(found[0, :12])[-2:] == pytest.approx([0, 1])

    def test_binary_patterns_equal_those_found_pixel_by_pixel(self):
        grey = RNG.integers(0, 4, (1, 9, 12)).astype(np.float32)
        counts = np.zeros(10)
        for y in range(1, 8):
            for x in range(1, 11):
                ring = [
                    grey[0, y + dy, x + dx]
                    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
                ]
                bits = [value > grey[0, y, x] for value in ring]
                changes = sum(bits[i] != bits[i - 1] for i in range(8))
                counts[sum(bits) if changes <= 2 else 9] += 1
        assert domain._binary_patterns(grey)[0] ** 2 == pytest.approx(counts / counts.sum())

    def test_stripes_are_coherent_and_noise_is_not(self):
        stripes = np.tile(np.sin(np.arange(64) / 3), (64, 1)).astype(np.float32)[None]
        noise = RNG.normal(size=(1, 64, 64)).astype(np.float32)
        assert domain._coherence(stripes).min() > 0.95
        assert domain._coherence(noise).max() < 0.7

    def test_windows_are_cut_in_reading_order_and_the_rest_is_left_out(self):
        picture = np.arange(130 * 200 * 3, dtype=np.uint32).astype(np.uint8).reshape(130, 200, 3)
        windows = windows_of(picture)
        assert windows.shape == (6, 64, 64, 3)
        assert np.array_equal(windows[4], picture[64:128, 64:128])
        assert len(windows_of(picture[:63])) == 0

    def test_glass_is_no_tissue(self, he):
        assert not with_tissue(windows_of(blank_glass((128, 128)))).any()
        assert with_tissue(windows_of(he[0])).all()


@pytest.mark.heavy  # seconds of features of many pictures
class TestDistance:
    def test_other_pictures_of_the_same_stain_are_near_zero(self, side, he):
        assert abs(side.distance(cut(he[4:])).kid) < 0.05
        assert abs(side.own().kid) < 0.05

    def test_turned_and_mirrored_he_is_still_he(self, side, he):
        turned = [np.rot90(he[4]), he[5][::-1], he[6][:, ::-1], he[7]]
        assert abs(side.distance(cut(turned)).kid) < 0.05

    def test_a_restaining_is_nearer_than_the_ihc(self, side, ihc):
        virtual, raw = (side.distance(cut(one)).kid for one in ([restained(one) for one in ihc], ihc))
        assert virtual < raw / 2

    def test_it_falls_all_the_way_from_ihc_to_he(self, side, ihc):
        ends = [(one.astype(float), restained(one).astype(float)) for one in ihc]

        def between(share):
            return [np.rint(raw + share * (virtual - raw)).astype(np.uint8) for raw, virtual in ends]

        values = [side.distance(cut(between(share))).kid for share in (0, 0.25, 0.5, 0.75, 1)]
        assert values == sorted(values, reverse=True)
        assert values[-1] < values[0] / 2

    def test_it_grows_with_blur(self, side, he):
        def blurred(px):
            return [np.rint(gaussian_filter(one.astype(float), (px, px, 0))).astype(np.uint8) for one in he[4:]]

        self.grows([side.distance(cut(blurred(px) if px else he[4:])).kid for px in (0, 1, 2, 4)])

    def test_it_grows_with_noise(self, side, he):
        def noisy(levels):
            noise = [np.random.default_rng(one).normal(0, levels, he[0].shape) for one in range(4)]
            return [np.clip(np.rint(one + by), 0, 255).astype(np.uint8) for one, by in zip(he[4:], noise, strict=True)]

        self.grows([side.distance(cut(noisy(levels))).kid for levels in (0, 6, 12, 24)])

    def test_it_grows_with_a_shift_of_hue(self, side, he):
        from skimage.color import hsv2rgb, rgb2hsv

        def shifted(turn):
            colours = [rgb2hsv(one) for one in he[4:]]
            return [
                np.rint(255 * hsv2rgb((one + np.array([turn, 0, 0])) % (1, 9, 9))).astype(np.uint8) for one in colours
            ]

        self.grows([side.distance(cut(shifted(turn))).kid for turn in (0, 0.05, 0.1, 0.2)])

    def test_an_inverted_picture_and_an_empty_one_are_farther_than_the_ihc(self, side, he, ihc):
        raw = side.distance(cut(ihc)).kid
        assert side.distance(cut([255 - one for one in he[4:]])).kid > raw
        assert side.distance(cut([np.full_like(one, (225, 180, 205)) for one in he[4:]])).kid > raw

    def test_a_side_of_two_laboratories_is_wider_than_one_of_one(self, he):
        paler = [np.rint(255 - (255 - one.astype(float)) * 0.6).astype(np.uint8) for one in he[4:]]
        assert Domain.of(he[:4] + paler).own().kid > Domain.of(he).own().kid + 0.05

    def test_a_side_of_one_picture_is_halved_by_windows(self):
        large = synthetic_he(shape=(576, 576), nuclei=110, seed=1).source.pixels
        assert abs(Domain.of([large]).own().kid) < 0.1

    def test_a_side_without_tissue_has_no_distance(self, he):
        glass = Domain.of([blank_glass((256, 256))])
        for found in (glass.distance(cut(he)), glass.own(), Domain.of([]).own()):
            assert math.isnan(found.kid)
            assert found.reason.startswith("0 windows of 64 px")

    @staticmethod
    def grows(values):
        assert values == sorted(values)
        assert values[0] < 0.1
        assert all(later > earlier + 0.05 for earlier, later in pairwise(values))


@pytest.mark.heavy
def test_real_he_is_nearer_to_real_he_than_real_ihc_is(shared):
    from stainbridge.io import open_picture

    def pictures(folder, pattern, count):
        opened = [open_picture(path) for path in sorted((shared / "data" / folder).glob(pattern))[:count]]
        return [one.read(0, 0, *one.shape)[:512, :512] for one in opened]

    tiles = pictures("he_tcga_v5", "*.jpg", 16)
    side = Domain.of(tiles[::2])
    held_out, raw = (
        side.distance(cut(tiles[1::2])).kid,
        side.distance(cut(pictures("ihc_deepliif", "*_IHC.png", 4))).kid,
    )
    assert held_out < 0.2
    assert raw > 5
