"""Tiles that fade into one another: one picture, whatever was read first, and nothing changed where tiles agree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stainbridge import Image, Translator, Wants, tiling
from stainbridge.errors import ConfigError
from stainbridge.preservation import seam_ratio
from stainbridge.tiling import Blended, feather, tiles
from stainbridge.virtual import Translated


class Toy(Translator):
    """Translates by a function of the batch, and remembers the tiles that it was shown."""

    name = "toy"
    api = 1

    def __init__(self, function, *, halo=0, blend=0, tile=None, multiple_of=1):
        super().__init__()
        self._wants = Wants("ihc", halo=halo, blend=blend, tile=tile, multiple_of=multiple_of)
        self.function, self.shown, self.batch_size = function, [], 3

    @property
    def wants(self):
        return self._wants

    def translate(self, batch):
        self.shown += [one.tobytes() for one in batch]
        return np.stack([self.function(one) for one in batch])


def numbered(shape, seed=0):
    """A picture in which no two tiles are alike."""
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def brightness_by_tile(tile):
    """A translator that, like instance normalisation, looks at the whole tile: each becomes flat in a colour of its own."""
    return np.full_like(tile, tile[..., 0].mean())


def whole(translated):
    return translated.read(0, 0, *translated.shape)


grids = {
    "shape": st.tuples(st.integers(1, 90), st.integers(1, 90)),
    "core": st.integers(8, 40),
    "blend": st.integers(1, 12),
    "more_halo": st.integers(0, 6),
}


@settings(max_examples=40, deadline=None)
@given(**grids)
def test_weights_of_a_grid_add_up_to_one_everywhere(shape, core, blend, more_halo):
    blend = min(blend, core // 2)
    total, sharing = np.zeros(shape), np.zeros(shape, int)
    for tile in tiles(shape, core, blend + more_halo):
        window, weights = feather(tile, shape, blend)
        outer = window.relative_to(tile.outer)
        assert outer.y >= 0
        assert outer.x >= 0
        assert outer.y + outer.height <= tile.outer.height
        assert outer.x + outer.width <= tile.outer.width
        assert (weights >= 0).all()
        total[window.slices] += weights
        sharing[window.slices] += weights > 0
    assert np.allclose(total, 1, atol=1e-6)
    assert sharing.max() <= 4


def test_a_weight_falls_in_a_straight_line_across_the_border():
    left, _ = tiles((4, 20), 10, 2)
    _, weights = feather(left, (4, 20), 2)
    assert weights.shape == (4, 12)
    assert weights[0].tolist() == [1.0] * 8 + [0.875, 0.625, 0.375, 0.125]


@settings(max_examples=25, deadline=None)
@given(**grids, level=st.integers(0, 255))
def test_a_constant_stays_constant(shape, core, blend, more_halo, level):
    toy = Toy(lambda tile: np.full_like(tile, level), halo=blend + more_halo, blend=blend)
    assert (whole(Translated(Image(numbered(shape), mpp=0.5), toy, core_px=core)) == level).all()


@settings(max_examples=25, deadline=None)
@given(**grids)
def test_the_identity_stays_the_identity(shape, core, blend, more_halo):
    pixels = numbered(shape)
    toy = Toy(np.copy, halo=blend + more_halo, blend=blend)
    assert np.array_equal(whole(Translated(Image(pixels, mpp=0.5), toy, core_px=core)), pixels)


@settings(max_examples=25, deadline=None)
@given(**grids, order=st.randoms())
def test_the_order_of_reading_changes_nothing_and_each_tile_is_translated_once(shape, core, blend, more_halo, order):
    pixels = numbered(shape)

    def translated():
        toy = Toy(brightness_by_tile, halo=blend + more_halo, blend=blend)
        return Translated(Image(pixels, mpp=0.5), toy, core_px=core), toy

    at_once, toy = translated()
    expected = whole(at_once)
    corners = [(y, x) for y in range(0, shape[0], 13) for x in range(0, shape[1], 13)]
    order.shuffle(corners)
    by_parts, toy = translated()
    for y, x in corners:
        height, width = min(13, shape[0] - y), min(13, shape[1] - x)
        assert np.array_equal(by_parts.read(y, x, height, width), expected[y : y + height, x : x + width])
    assert len(toy.shown) == len(tiles(shape, core, blend + more_halo))


def test_a_window_translates_only_the_tiles_that_touch_it():
    pixels = numbered((100, 100))
    for y, x, height, width, touched in ((20, 20, 5, 5, 1), (20, 40, 5, 5, 2), (45, 45, 10, 10, 4), (0, 0, 100, 45, 4)):
        toy = Toy(brightness_by_tile, halo=8, blend=8)
        Translated(Image(pixels, mpp=0.5), toy, core_px=50).read(y, x, height, width)
        assert len(toy.shown) == touched, (y, x)


def test_halfway_between_two_tiles_is_halfway_between_their_colours():
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:, 20:] = 200
    toy = Toy(lambda tile: np.full_like(tile, 40 if tile.mean() < 100 else 100), halo=4, blend=4)
    he = whole(Translated(Image(pixels, mpp=0.5), toy, core_px=20))
    # 40 + 60 * (1/16, 3/16, ... 15/16), rounded
    assert he[0, 15:25, 0].tolist() == [40, 44, 51, 59, 66, 74, 81, 89, 96, 100]
    assert (he == he[:1]).all()


def test_blending_hides_a_seam_that_a_hard_border_shows():
    rng = np.random.default_rng(1)
    pixels = np.clip(np.linspace(60, 200, 128)[None, :, None] + rng.normal(0, 3, (128, 128, 3)), 0, 255)
    source = Image(pixels.astype(np.uint8), mpp=0.5)

    def drifting(tile):  # each tile in a brightness of its own, as with statistics of the tile
        return np.clip(tile.astype(int) - int(tile.mean()) + 128, 0, 255).astype(np.uint8)

    seams = {
        blend: seam_ratio(whole(Translated(source, Toy(drifting, halo=8, blend=blend), core_px=32)), step_px=32)
        for blend in (0, 8)
    }
    assert seams[0] > 3
    assert seams[8] < 1.2


def test_a_picture_on_disk_is_the_picture_in_memory(monkeypatch):
    source = Image(numbered((70, 90)), mpp=0.5)

    def he():
        return whole(Translated(source, Toy(brightness_by_tile, halo=6, blend=6), core_px=20))

    expected = he()
    monkeypatch.setattr(tiling, "IN_MEMORY_PX", 0)
    assert np.array_equal(he(), expected)


def test_one_tile_is_not_blended():
    toy = Toy(np.copy, halo=8, blend=8, tile=64)
    translated = Translated(Image(numbered((50, 60)), mpp=0.5), toy)
    assert (translated.blend_px, translated.core_px) == (0, 64)


def test_a_feather_is_no_wider_than_half_a_core():
    toy = Toy(np.copy, halo=30, blend=30)
    translated = Translated(Image(numbered((100, 100)), mpp=0.5), toy, core_px=20)
    assert (translated.core_px, translated.halo_px, translated.blend_px) == (20, 30, 10)


@pytest.mark.parametrize(("halo", "blend"), [(8, 9), (0, 1), (8, -1)])
def test_a_feather_beyond_the_halo_is_refused(halo, blend):
    with pytest.raises(ConfigError, match=rf"blend must be 0\.\.halo: .* found {blend}, halo {halo}"):
        Wants("ihc", halo=halo, blend=blend)


@pytest.mark.parametrize("shape", [(61, 83), (64, 64), (50, 47)])
@pytest.mark.parametrize("blend", [0, 4])
def test_a_translator_that_pairs_pixels_sees_the_same_pairs_in_every_tile(shape, blend):
    def paired(tile):
        """Each 4 x 4 block, counted from the corner, takes its mean: what strides do to a network."""
        means = tile.reshape(tile.shape[0] // 4, 4, tile.shape[1] // 4, 4, 3).mean((1, 3))
        return np.repeat(np.repeat(means, 4, 0), 4, 1).astype(np.uint8)

    source = Image(numbered(shape), mpp=0.5)
    in_one = whole(Translated(source, Toy(paired, multiple_of=4), core_px=1024))
    cut = Translated(source, Toy(paired, halo=7, blend=blend, multiple_of=4), core_px=18)
    assert (cut.core_px, cut.halo_px) == (20, 8)
    assert np.array_equal(whole(cut), in_one)


def test_sums_never_overflow():
    shape = (40, 40, 3)
    blended = Blended(shape, 5)
    for tile in tiles(shape[:2], 10, 5):
        blended.add(tile, np.full((tile.outer.height, tile.outer.width, 3), 255, np.uint8))
    assert (blended.read(0, 0, 40, 40) == 255).all()
