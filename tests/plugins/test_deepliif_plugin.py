"""DeepLIIF as segmenter and classifier: the contract, one pass for both, recorded outputs end to end, and pictures of any size."""

import copy
import gc
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from stainbridge import Calibrated, RunConfig, build, run
from stainbridge.errors import ConfigError, WeightsUnavailable
from stainbridge.testing import blank_glass, run_checks, synthetic_ihc
from stainbridge.tiling import tiles
from stainbridge_plugins.deepliif import engine, tiling
from stainbridge_plugins.deepliif.classifier import DeepLIIFCalls
from stainbridge_plugins.deepliif.differences import differences
from stainbridge_plugins.deepliif.ensemble import Ensemble
from stainbridge_plugins.deepliif.segmenter import DeepLIIF

torch = pytest.importorskip("torch", reason="torch is not installed")
sys.path.insert(0, str(Path(__file__).parent))

from deepliif_models import FEWER, FROM_IHC, write_model  # noqa: E402

pytestmark = pytest.mark.heavy

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
DATA = SHARED / "data" / "ihc_deepliif"
real = pytest.mark.skipif(not DATA.exists(), reason="needs the pictures of ../shared, which are not shipped")
VERSIONS = ("1.1.2", "current")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("deepliif"))


@pytest.fixture
def computed(monkeypatch):
    """How many tiles the networks were given, in a list."""
    given, call = [], Ensemble.__call__

    def counting(self, batch):
        given.append(len(batch))
        return call(self, batch)

    monkeypatch.setattr(Ensemble, "__call__", counting)
    return given


def picture(name):
    return np.asarray(Pillow.open(name).convert("RGB"))


def pair(model, *, classifier=None, **settings):
    """A segmenter and a classifier with the same networks, which find brown and blue by their colour."""
    settings = {"path": model, "seg_weights": FROM_IHC, **settings}
    own = {name: settings[name] for name in settings if name in DeepLIIFCalls.Config.model_fields}
    return DeepLIIF(DeepLIIF.Config(**settings)), DeepLIIFCalls(DeepLIIFCalls.Config(**own, **(classifier or {})))


def tiles_read(shape):
    """How many different tiles core reads of a picture; the last of a row may be the one before it."""
    return len({tile.outer for tile in tiles(shape, 384, 64)})


def nuclei(shape, seed=0):
    made = synthetic_ihc(shape=shape, nuclei=round(shape[0] * shape[1] / 4500), mpp=0.25, seed=seed)
    return made.source.pixels, made.truth.array, made.positive


class TestContract:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("kind", [0, 1])
    def test_both_keep_it(self, model, version, kind):
        reports = run_checks(pair(model, version=version)[kind])
        assert [report for report in reports if not report.ok] == []
        assert len(reports) > 12

    def test_the_segmenter_keeps_it_with_tiles_as_1_1_2_cuts_them(self, model):
        # Where a window begins decides what is resized to what.
        only = ("keeps_shape_and_dtype", "accepts_blank_glass", "is_deterministic", "finds_the_synthetic_nuclei")
        assert all(report.ok for report in run_checks(pair(model, tiling="original")[0], only=only))

    @pytest.mark.parametrize("version", VERSIONS)
    def test_all_nine_networks_give_labels_of_the_right_form(self, model, version):
        ihc, labels, _ = nuclei((512, 512))
        settings = {"path": model, "version": version}
        found = DeepLIIF(DeepLIIF.Config(**settings)).segment(ihc[None])
        assert (found.shape, found.dtype) == ((1, 512, 512), np.int32)
        p = DeepLIIFCalls(DeepLIIFCalls.Config(**settings)).classify(ihc, labels)
        assert ((p >= 0) & (p <= 1)).all()

    def test_without_networks_it_says_what_to_do(self):
        for plugin in (DeepLIIF, DeepLIIFCalls):
            with pytest.raises(WeightsUnavailable, match=r"'deepliif' has no networks"):
                plugin()

    def test_discovery_builds_it_by_a_folder(self, model):
        choice = {"path": str(model), "seg_weights": list(FROM_IHC)}
        segmenter = build("segmenter", {"name": "deepliif", **choice})
        assert isinstance(segmenter.plugin, DeepLIIF)
        files = {one["file"] for one in segmenter.facts["weights"]}
        assert files == {"latest_net_G51.pth", "train_opt.txt"}
        assert all(len(one["sha256"]) == 64 for one in segmenter.facts["weights"])


class TestOnePass:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_a_tile_is_computed_once_for_calibration_segmentation_and_calls(self, model, computed, version):
        ihc, _, positive = nuclei((512, 512))
        segmenter, classifier = pair(model, version=version)
        result = run(ihc, segmenter=segmenter, classifier=classifier, mpp=0.25)
        assert computed == [1]
        assert len(result.nuclei.label) == pytest.approx(len(positive), rel=0.15)
        assert result.nuclei.positive.mean() == pytest.approx(positive.mean(), abs=0.1)

    @pytest.mark.parametrize("version", VERSIONS)
    def test_tiles_of_a_larger_picture_are_computed_once_each(self, model, computed, version):
        ihc, _, _ = nuclei((900, 1300), seed=1)
        segmenter, classifier = pair(model, version=version)
        result = run(ihc, segmenter=segmenter, classifier=classifier, mpp=0.25)
        assert sum(computed) == tiles_read((900, 1300))
        assert result.provenance["segmentation"]["calls"] == "from the segmenter's pass"
        assert np.array_equal(result.nuclei.p_positive, result.nuclei.features["deepliif_positive_share"])
        again = run(
            ihc, segmenter=segmenter, classifier=pair(model, version=version, classifier={"reuse": False})[1], mpp=0.25
        )
        assert again.provenance["segmentation"]["calls"] == "from the image"
        assert np.array_equal(again.nuclei.label, result.nuclei.label)
        assert np.mean(again.nuclei.positive == result.nuclei.positive) > 0.99
        assert again.nuclei.p_positive == pytest.approx(result.nuclei.p_positive, abs=0.1)

    def test_a_picture_at_another_scale_is_resampled_once_for_both(self, model, computed):
        ihc, _, _ = nuclei((400, 500))
        segmenter, classifier = pair(model)
        run(ihc, segmenter=segmenter, classifier=classifier, mpp=0.5)
        assert computed == [1] * tiles_read((800, 1000))

    def test_nuclei_of_another_segmenter_cost_a_pass(self, model, computed):
        ihc, labels, positive = nuclei((512, 512), seed=2)
        p = pair(model)[1].classify(ihc, labels)
        assert computed == [1]
        assert np.mean((p >= 0.5) == positive) > 0.95

    def test_calls_of_one_pass_are_those_of_the_tile_in_pixels(self, model):
        ihc, _, _ = nuclei((512, 512), seed=3)
        segmenter, _ = pair(model)
        labels, values = segmenter.describe(ihc[None])
        (cells,) = segmenter.cells(ihc[None])
        assert np.array_equal(labels[0], cells.labels)
        assert np.array_equal(values[0]["deepliif_positive_share"], cells.p_positive)

    def test_only_tiles_with_nuclei_are_computed(self, model, computed):
        ihc, labels, _ = nuclei((1300, 1300), seed=3)
        few = np.zeros_like(labels)
        few[600:630, 600:630] = 1
        assert len(pair(model)[1].classify(ihc, few)) == 1
        assert sum(computed) == 1

    @pytest.mark.parametrize("other", [{"seg_thresh": 90}, {"seed": 7}, {"version": "current"}])
    def test_calls_are_not_taken_from_other_networks_or_settings(self, model, other):
        segmenter, classifier = pair(model)
        assert classifier.derives_from(segmenter)
        assert not pair(model, **other)[1].derives_from(segmenter)

    def test_calls_do_not_depend_on_what_was_run_before(self, model):
        ihc, labels, _ = nuclei((512, 512), seed=6)
        segmenter, classifier = pair(model)
        fresh = classifier.classify(ihc, labels)
        segmenter.segment(ihc[None])
        assert np.array_equal(classifier.classify(ihc, labels), fresh)

    def test_networks_are_in_memory_once_and_gone_with_their_plugins(self, model):
        segmenter, classifier = pair(model, seed=99)
        other = pair(model, seed=98)[0]
        assert segmenter.engine is classifier._engine
        assert segmenter.engine is copy.copy(segmenter).engine
        assert other.engine is not segmenter.engine
        kept = len(engine._open)
        del segmenter, classifier
        gc.collect()
        assert len(engine._open) < kept

    def test_a_file_that_changed_is_another_model(self, tmp_path):
        folder = write_model(tmp_path)
        first = pair(folder)[0]
        torch.save(torch.load(folder / "latest_net_G51.pth", weights_only=True), folder / "latest_net_G51.pth")
        (folder / "train_opt.txt").write_text((folder / "train_opt.txt").read_text() + "\n")
        assert pair(folder)[0].engine is not first.engine


class TestSizes:
    @pytest.mark.parametrize("shape", [(1, 1), (20, 700), (300, 200), (513, 600)])
    @pytest.mark.parametrize("version", VERSIONS)
    def test_any_size_is_padded(self, model, shape, version):
        ihc = nuclei((704, 704))[0][: shape[0], : shape[1]]
        assert pair(model, version=version)[0].segment(ihc[None]).shape == (1, *shape)

    def test_what_is_beyond_the_picture_does_not_change_it(self, model):
        ihc = nuclei((512, 512))[0]
        seg = pair(model)[0]
        whole, part = (seg.segmentations(one[None])[0] for one in (ihc, ihc[:300, :400]))
        assert np.array_equal(part[:-2, :-2], whole[:298, :398])

    @pytest.mark.parametrize("length", [1, 384, 511, 512, 513, 640, 900, 1279, 2048])
    def test_its_own_grid_is_the_one_that_core_cuts(self, length):
        expected = [
            (t.core.y, t.core.y + t.core.height, t.outer.y, t.outer.y + t.outer.height)
            for t in tiles((length, 512), 384 if length > 512 else 512, 64)
            if t.core.x == 0
        ]
        assert engine._spans(length) == expected

    def test_glass_has_no_nuclei_in_any_version(self, model):
        glass = blank_glass((512, 512))
        for version in VERSIONS:
            assert pair(model, version=version)[0].segment(glass[None]).max() == 0


class TestTilesOf112:
    """Sizes, order and border of the tiles, with networks that show what they are given."""

    def test_a_picture_of_about_one_tile_is_one_tile_without_a_border(self):
        ihc = nuclei((512, 512))[0]
        given = []

        def run(batch):
            given.append(batch)
            return batch

        assert np.array_equal(tiling.resized_tiles(ihc, run), ihc)
        assert np.array_equal(given[0], ihc[None])
        assert tiling.resized_tiles(ihc[:400, :300], run).shape == (400, 300, 3)
        assert given[1].shape == (1, 512, 512, 3)

    def test_a_larger_one_is_cut_into_tiles_with_a_quarter_around_them_and_a_white_border(self):
        ihc = np.full((1024, 1536, 3), 100, np.uint8)
        ihc[:512, :512] = 60
        given = []

        def run(batch):
            given.append(batch)
            return batch

        seg = tiling.resized_tiles(ihc, run)
        assert given[0].shape == (6, 512, 512, 3)
        first, last = given[0][0], given[0][5]
        # 128 of 768 px of border are 85 of 512.
        assert (first[:82].min(), first[:, :82].min()) == (255, 255)
        assert (first[90:420, 90:420] == 60).all()
        assert (first[90:420, 434:] == 100).all()
        assert (last[432:].min(), last[:, 432:].min()) == (255, 255)
        # Near the white border and where the greys meet, resizing rings.
        assert np.array_equal(seg[20:490, 20:490], ihc[20:490, 20:490])
        assert np.array_equal(seg[540:-20, 20:-20], ihc[540:-20, 20:-20])

    @pytest.mark.parametrize(("shape", "count"), [((767, 767), 1), ((768, 512), 2), ((100, 1300), 3), ((1200, 900), 4)])
    def test_sides_are_rounded_to_whole_tiles(self, shape, count):
        counts = []

        def run(batch):
            counts.append(len(batch))
            return batch

        assert tiling.resized_tiles(np.zeros((*shape, 3), np.uint8), run).shape == (*shape, 3)
        assert counts == [count]

    def test_the_segmenter_takes_them_if_told_to(self, model):
        ihc = nuclei((512, 512))[0]
        original = pair(model, tiling="original")[0]
        assert original.wants.tile is None
        assert np.array_equal(original.segment(ihc[None]), pair(model)[0].segment(ihc[None]))


def pasted(ihc, network):
    """The current program's way with a picture, tile by tile and side by side: each rim of the picture is its tile's own."""
    height, width = ihc.shape[:2]
    while ihc.shape[1] < 512:
        ihc = np.concatenate([ihc, ihc[:, ::-1]], axis=1)
    while ihc.shape[0] < 512:
        ihc = np.concatenate([ihc, ihc[::-1]])
    ihc = ihc[: max(height, 512), : max(width, 512)]
    rows, columns = ihc.shape[:2]
    canvas = np.zeros_like(ihc)
    for y in range(0, rows, 448 if rows > 512 else 512):
        for x in range(0, columns, 448 if columns > 512 else 512):
            at_y, at_x = min(y, rows - 512), min(x, columns - 512)
            tile = network(ihc[None, at_y : at_y + 512, at_x : at_x + 512])[0]
            for i in range(512):
                if 32 <= i < 480 or (i < 32 and at_y == 0) or (i >= 480 and at_y == rows - 512):
                    first, last = (0 if at_x == 0 else 32), (512 if at_x == columns - 512 else 480)
                    canvas[at_y + i, at_x + first : at_x + last] = tile[i, first:last]
    return canvas[:height, :width]


class TestTilesOfCurrent:
    """Where the tiles lie, and whose each pixel is."""

    def numbered(self):
        """A network that paints each tile with its number, counted from 1."""
        count = 0

        def run(batch):
            nonlocal count
            numbers = np.arange(count + 1, count + 1 + len(batch), dtype=np.uint8)
            count += len(batch)
            return np.broadcast_to(numbers[:, None, None, None], (*batch.shape[:3], 1))

        return run

    def test_a_picture_of_1000_px_worked_by_hand(self):
        # Tiles begin at 0, 448 and 1000 - 512 = 488; 32 px of each are left out, but not where the picture ends.
        owners = tiling.overlapping_tiles(np.zeros((512, 1000, 3), np.uint8), self.numbered())[..., 0]
        assert (owners == owners[0]).all()
        starts = np.flatnonzero(np.diff(owners[0])) + 1
        assert starts.tolist() == [480, 520]
        assert owners[0][[0, 480, 520]].tolist() == [1, 2, 3]

    def test_a_tile_that_would_come_twice_comes_once(self):
        # 960 = 448 + 512: a third tile would lie where the second does.
        owners = tiling.overlapping_tiles(np.zeros((960, 960, 3), np.uint8), self.numbered())[..., 0]
        assert np.unique(owners).tolist() == [1, 2, 3, 4]
        assert owners[[479, 480], 0].tolist() == [1, 3]

    def test_a_small_picture_is_mirrored_as_often_as_it_takes(self):
        ihc = nuclei((512, 512))[0][:100, :150]
        given = []

        def run(batch):
            given.append(batch)
            return batch

        assert np.array_equal(tiling.overlapping_tiles(ihc, run), ihc)
        (tile,) = given[0]
        assert np.array_equal(tile[:100, 150:300], ihc[:, ::-1])
        assert np.array_equal(tile[:100, 300:450], ihc)
        assert np.array_equal(tile[100:200, :150], ihc[::-1])
        assert np.array_equal(tile[400:500, :150], ihc)

    @pytest.mark.parametrize(
        "shape", [(512, 512), (1, 700), (300, 200), (513, 512), (448, 1408), (900, 1300), (2200, 520)]
    )
    def test_it_is_what_pasting_tile_by_tile_gives(self, shape):
        ihc = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        # What it makes of a pixel depends on the tile and the place in it, so that a pixel of the wrong tile is another.
        place = np.add.outer(7 * np.arange(512), 13 * np.arange(512))[None, ..., None]

        def run(batch):
            return (batch + place + batch[:, :1, :1]).astype(np.uint8)

        assert np.array_equal(tiling.overlapping_tiles(ihc, run), pasted(ihc, run))

    def test_the_segmenter_takes_them_if_told_to_and_keeps_the_marker(self, model):
        ihc = nuclei((700, 600), seed=4)[0]
        settings = {"version": "current", "seg_weights": (0.9, 0, 0, 0, 0.1), "tiling": "original"}
        segmenter, classifier = pair(model, classifier={"marker_thresh": 10}, **settings)
        assert segmenter.wants.tile is None
        network = segmenter.engine.tiles
        expected = pasted(ihc, lambda tiles: network(tiles)[..., :3])
        assert np.array_equal(segmenter.segmentations(ihc[None])[0], expected)
        labels, (told,) = segmenter.describe(ihc[None])
        assert labels.max() > 3
        assert classifier.derives_from(segmenter)
        assert np.isfinite(told["deepliif_marker"]).all()

    def test_a_picture_of_one_tile_is_the_same_with_either_tiling(self, model):
        ihc = nuclei((512, 512))[0]
        one, other = (pair(model, version="current", tiling=tiling)[0] for tiling in ("original", "padded"))
        assert np.array_equal(one.segment(ihc[None]), other.segment(ihc[None]))

    @pytest.mark.parametrize("version", VERSIONS)
    def test_a_larger_picture_is_tiled_as_a_whole_with_its_size_as_tile_px(self, model, version):
        ihc = nuclei((1300, 1100), seed=5)[0]
        segmenter, classifier = pair(model, version=version, tiling="original", size_px=40)
        config = RunConfig(tile_px=1300)
        found = run(ihc, segmenter=segmenter, classifier=classifier, mpp=0.25, config=config)
        whole = segmenter.segment(ihc[None])[0]
        assert found.provenance["segmentation"]["tiles"] == 1
        assert len(found.nuclei.label) == whole.max()


class TestCalibration:
    def test_current_takes_the_smallest_cell_from_the_whole_picture(self, model):
        segmenter = pair(model, version="current")[0]
        assert isinstance(segmenter, Calibrated)
        ihc = nuclei((1300, 1300), seed=5)[0]
        ihc = np.where(np.random.default_rng(0).random((1300, 1300, 1)) < 0.0005, np.array([140, 80, 40]), ihc).astype(
            np.uint8
        )
        fitted = segmenter.calibrate(ihc[None])
        expected = segmenter.cells(ihc[None])[0].size_px
        assert fitted.config.size_px == expected > 0
        assert segmenter.config.size_px is None
        assert fitted.cells(ihc[None, :512, :512])[0].size_px == expected

    @pytest.mark.parametrize("settings", [{}, {"version": "current", "size_px": 30}])
    def test_nothing_is_computed_where_nothing_is_derived(self, model, computed, settings):
        segmenter = pair(model, **settings)[0]
        assert segmenter.calibrate(np.zeros((1, 512, 512, 3), np.uint8)) is segmenter
        assert computed == []


class TestMarker:
    def test_a_marker_above_the_threshold_makes_a_nucleus_positive(self, model):
        ihc, _, _ = nuclei((512, 512), seed=6)
        settings = {"version": "current", "seg_weights": (0.9, 0, 0, 0, 0.1), "reading": "interior"}
        segmenter, classifier = pair(model, **settings)
        labels = segmenter.segment(ihc[None])[0]
        assert labels.max() > 3
        marker = segmenter.engine.tiles(ihc[None])[0, ..., 3]
        brightest = np.array([marker[labels == one].max() for one in range(1, labels.max() + 1)])
        limit = int(np.median(brightest))
        plain = classifier.classify(ihc, labels)
        _, (told,) = segmenter.describe(ihc[None])
        lighting = pair(model, classifier={"marker_thresh": limit}, **settings)[1]
        assert lighting.derives_from(segmenter)
        for lit in (lighting.classify(ihc, labels), lighting.derive(told)):
            assert np.array_equal(lit == 1, (brightest > limit) | (plain == 1))
            assert lit[brightest <= limit] == pytest.approx(plain[brightest <= limit], abs=1e-6)

    def test_its_threshold_may_be_that_of_the_picture(self, model):
        ihc, labels, _ = nuclei((512, 512), seed=6)
        settings = {"version": "current", "seg_weights": FEWER}
        classifier = pair(model, classifier={"marker_thresh": "picture"}, **settings)[1]
        marker = classifier._engine.tiles(ihc[None])[0, ..., 3].astype(float)
        low, high = np.round(np.percentile(marker[marker > 0], [0.1, 99.9]))
        fitted = classifier.calibrate(ihc[None])
        assert fitted.config.marker_thresh == round((high - low) * 0.9) + low
        assert np.array_equal(classifier.classify(ihc, labels), fitted.classify(ihc, labels))

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"seg_weights": FEWER}, True),
            ({"seg_weights": FEWER, "version": "current"}, True),
            ({"seg_weights": FEWER, "version": "current", "tiling": "original"}, True),
            ({"seg_weights": FEWER, "tiling": "original"}, False),
            ({}, False),
            ({"version": "current"}, False),
        ],
    )
    def test_there_is_a_column_of_it_only_where_there_is_a_marker(self, model, settings, told):
        segmenter, classifier = pair(model, **settings)
        ihc = nuclei((512, 512), seed=6)[0]
        _, values = segmenter.describe(np.stack([ihc, blank_glass((512, 512))]))
        names = ["deepliif_positive_share", "deepliif_marker"][: 1 + told]
        assert [list(one) for one in values] == [names, names]
        assert all(np.isfinite(column).all() for one in values for column in one.values())
        assert classifier.derives_from(segmenter)
        assert np.array_equal(classifier.derive(values[0]), values[0]["deepliif_positive_share"])
        result = run(ihc, segmenter=segmenter, classifier=classifier, mpp=0.25)
        assert ("deepliif_marker" in result.nuclei.features) == told

    def test_calls_by_the_marker_are_derived_only_with_a_threshold(self, model):
        settings = {"version": "current", "seg_weights": FEWER}
        ihc = nuclei((512, 512), seed=6)[0]
        segmenter, classifier = pair(model, classifier={"marker_thresh": "picture"}, **settings)
        assert not classifier.derives_from(segmenter)
        assert classifier.calibrate(ihc[None]).derives_from(segmenter)

    def test_a_threshold_of_the_picture_costs_one_pass(self, model, computed):
        ihc, labels, _ = nuclei((900, 1300), seed=1)
        few = np.where(labels == 1, labels, 0)
        pair(model, classifier={"marker_thresh": "picture"}, version="current", seg_weights=FEWER)[1].classify(ihc, few)
        assert sum(computed) == tiles_read((900, 1300))

    def test_a_threshold_without_a_marker_is_refused(self, model):
        with pytest.raises(ConfigError, match="marker_thresh needs the marker picture"):
            pair(model, classifier={"marker_thresh": 100}, version="current")


def test_differences_of_the_ways_to_run_them_are_reported(model):
    ihc = nuclei((512, 512), seed=7)[0]
    config = DeepLIIF.Config(path=model, version="current", seg_weights=FEWER, seg_thresh=60)
    rows = {row.mode: row for row in differences(config, ihc[None])}
    same = rows["batch", False]
    assert (same.mean_grey, same.max_grey, same.changed_px) == (0, 0, 0)
    assert same.nuclei == len(DeepLIIF(config).cells(ihc[None])[0].p_positive) > 0
    for mode in (("batch", True), ("running", False), ("running", True)):
        assert rows[mode].mean_grey > 0
        assert rows[mode].max_grey >= rows[mode].mean_grey


@real
class TestRealPictures:
    @pytest.mark.parametrize("name", ["22_2", "34_3", "6_2"])
    @pytest.mark.parametrize(
        ("version", "positive", "total"),
        [("1.1.2", (8, 34, 21), (122, 119, 104)), ("current", (8, 33, 18), (114, 117, 97))],
    )
    def test_recorded_segmentations_become_scored_nuclei(self, model, monkeypatch, name, version, positive, total):
        ihc, seg = picture(DATA / f"{name}_IHC.png"), picture(DATA / "recorded" / f"{name}_fake_B_5.png")
        marker = picture(DATA / "recorded" / f"{name}_fake_B_4.png").max(axis=-1)
        recorded = np.dstack([seg, marker])[None]
        monkeypatch.setattr(Ensemble, "__call__", lambda self, batch: recorded.repeat(len(batch), axis=0))
        segmenter, classifier = pair(model, version=version, seed=1)
        result = run(ihc, segmenter=segmenter, classifier=classifier, mpp=0.25)
        index = ["22_2", "34_3", "6_2"].index(name)
        assert (int(result.nuclei.positive.sum()), len(result.nuclei.label)) == (positive[index], total[index])
        assert result.scores["percent_positive"] == pytest.approx(100 * positive[index] / total[index])

    def test_a_picture_of_several_tiles_is_computed_once_but_for_a_few(self, model, computed):
        roi = picture(DATA / "large_ROI_7.png")
        segmenter, classifier = pair(model)
        result = run(roi, segmenter=segmenter, classifier=classifier, mpp=0.25)
        assert tiles_read(roi.shape[:2]) <= sum(computed) <= 1.25 * tiles_read(roi.shape[:2])
        assert len(result.nuclei.label) > 100
