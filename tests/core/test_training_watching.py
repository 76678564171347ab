"""The epoch that keeps the nuclei and looks like H&E is best; one that does nothing, erases or invents is not."""

import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from stainbridge import Segmenter, Translator, Wants, run
from stainbridge.color import DAB, EOSIN, HAEMATOXYLIN, mix, unmix
from stainbridge.discovery import build
from stainbridge.errors import ConfigError, WriteFailed
from stainbridge.evaluation import evaluate
from stainbridge.preservation import brown_retention, centroid_recall
from stainbridge.records import Image, Sample
from stainbridge.testing.synthetic import blank_glass, synthetic_he, synthetic_ihc
from stainbridge.training import translation
from stainbridge.training.choosing import Highest, Selection, UnderLimit, preservation_score
from stainbridge.training.domain import Distance
from stainbridge.training.fields import draw_fields, labelled_fields
from stainbridge.training.grids import CELL_PX, write_grid
from stainbridge.training.settings import TrainConfig
from stainbridge.training.watching import Watcher

NAN = math.nan
SIDE_PX, NUCLEI, MPP = 320, 36, 0.25


class Nothing(Translator):
    """Returns the IHC."""

    name, api = "nothing", 1

    @property
    def wants(self):
        return Wants("ihc", mpp=MPP)

    def translate(self, batch):
        return batch.copy()


class Restaining(Nothing):
    """Turns both dyes into haematoxylin over uneven eosin, seen by the camera of the H&E: what a trained translator would give."""

    blue, brown = 1.8, 1.0

    def translate(self, batch):
        blue, brown = np.moveaxis(unmix(batch, (HAEMATOXYLIN, DAB), background=245), -1, 0)
        nuclear = gaussian_filter(np.clip(self.blue * blue + self.brown * brown, 0.06, 1.1), (0, 0.7, 0.7))
        camera = np.random.default_rng(3)
        uneven = gaussian_filter(camera.standard_normal(nuclear.shape), (0, 4, 4))
        eosin = 0.22 * np.clip(1 + 0.3 * uneven / uneven.std(), 0, None)
        light = mix(np.stack([nuclear, eosin], axis=-1), (HAEMATOXYLIN, EOSIN), background=245)
        return np.clip(np.rint(light + camera.normal(0, 2, light.shape)), 0, 255).astype(np.uint8)


class Erasing(Restaining):
    """Leaves the ground of H&E and no nucleus."""

    blue = brown = 0.0


class LosingBrown(Restaining):
    """Erases the brown nuclei and keeps the blue ones."""

    brown = -1.0


class Pixelwise(Nothing):
    """Swaps two colours, and nothing depends on a neighbour."""

    def translate(self, batch):
        return batch[..., ::-1].copy()


class Inverting(Nothing):
    """Returns the negative."""

    def translate(self, batch):
        return 255 - batch


class Inventing(Nothing):
    """Shows perfect H&E with nuclei in other places."""

    def translate(self, batch):
        he = synthetic_he(shape=(SIDE_PX, SIDE_PX), nuclei=NUCLEI, seed=77).source.pixels
        return np.broadcast_to(he[: batch.shape[1], : batch.shape[2]], batch.shape).copy()


class Going:
    """A learner that is asked for nothing."""


class Returning(Going):
    """A learner that knows the way back."""

    def reconstruct(self, he):
        self.seen = he.shape
        return 255 - he


def settings(**watch):
    return TrainConfig(plugin="any", mpp=MPP, watch={"pictures": 2, "size_px": SIDE_PX, **watch})


@pytest.fixture(scope="module")
def ihc():
    return [synthetic_ihc(shape=(SIDE_PX, SIDE_PX), nuclei=NUCLEI, seed=seed).source for seed in range(3)]


@pytest.fixture(scope="module")
def he():
    return [synthetic_he(shape=(SIDE_PX, SIDE_PX), nuclei=NUCLEI, seed=seed).source for seed in range(20, 26)]


@pytest.fixture(scope="module")
def watcher(ihc, he, tmp_path_factory):
    return Watcher.open(settings(), ihc, he, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def values(watcher):
    """What each translator is worth, by its name."""
    kinds = (Nothing, Restaining, Erasing, LosingBrown, Inverting, Inventing)
    return {kind.__name__: watcher.look(kind(), Going()).values for kind in kinds}


def best_of(watcher, epochs):
    best = None
    for one in epochs:
        if watcher.is_better(one, best):
            best = one
    return best


@pytest.mark.heavy
class TestTheBestEpoch:
    def test_it_is_the_good_translator_in_whatever_order_they_come(self, watcher, values):
        for order in itertools.permutations(values):
            assert best_of(watcher, [values[name] for name in order]) is values["Restaining"]

    def test_doing_nothing_keeps_every_nucleus_and_is_over_the_limit(self, watcher, values):
        nothing = values["Nothing"]
        assert nothing["centroid_recall"] == nothing["count_ratio"] == nothing["brown_retention"] == 1.0
        assert nothing["preservation"] > values["Restaining"]["preservation"] - 0.05
        assert nothing["kid"] > 3 * watcher.limit
        assert values["Restaining"]["kid"] < watcher.limit

    def test_an_eraser_keeps_nothing(self, values):
        assert values["Erasing"]["preservation"] < 0.3
        assert values["Erasing"]["centroid_recall"] < 0.1

    def test_invented_nuclei_look_like_he_and_do_not_count_as_kept(self, watcher, values):
        assert values["Inventing"]["kid"] < watcher.limit
        assert values["Inventing"]["centroid_recall"] < 0.5
        assert values["Inventing"]["preservation"] < values["Restaining"]["preservation"] - 0.2

    def test_erased_brown_nuclei_cost_their_own_value(self, values):
        assert values["LosingBrown"]["brown_retention"] < values["LosingBrown"]["centroid_recall"] - 0.2
        assert values["Restaining"]["brown_retention"] > 0.9

    def test_an_inverted_picture_is_farther_from_he_than_the_ihc(self, values):
        assert values["Inverting"]["kid"] > values["Nothing"]["kid"]

    def test_without_a_limit_in_reach_the_nearest_to_he_is_best(self, ihc, he, tmp_path, values):
        strict = Watcher.open(settings(kid_limit=1e-9), ihc, he, tmp_path)
        assert best_of(strict, values.values()) is min(values.values(), key=lambda one: one["kid"])


@pytest.mark.heavy
class TestValues:
    def test_nuclei_are_those_that_a_run_finds(self, watcher, values):
        counts, recalls = [], []
        for field in watcher.fields:
            virtual = Image(Restaining().translate(field.ihc.pixels[None])[0], MPP)
            before, after = (
                run(field.ihc, "identity", "baseline/ihc").nuclei,
                run(virtual, "identity", "baseline/he").nuclei,
            )
            points = [np.stack([one.y, one.x], axis=1) for one in (before, after)]
            brown = before.features["dab_od_mean"] >= 0.2
            counts.append((len(before), len(after), brown.sum()))
            recalls.append((centroid_recall(*points, mpp=MPP), brown_retention(*points, brown, mpp=MPP)))
        before, after, brown = np.array(counts).T
        recall, retention = np.array(recalls).T
        found = values["Restaining"]
        assert found["count_ratio"] == pytest.approx(after.sum() / before.sum())
        assert found["centroid_recall"] == pytest.approx((recall * before).sum() / before.sum())
        assert found["brown_retention"] == pytest.approx((retention * brown).sum() / brown.sum())
        assert (found["nuclei_before"], found["nuclei_after"]) == (before.sum(), after.sum())

    def test_the_ihc_is_segmented_once_and_not_at_each_epoch(self, ihc, he, tmp_path, monkeypatch):
        calls = []
        monkeypatch.setattr(
            translation, "run_stages", lambda *a, real=translation.run_stages, **k: calls.append(1) or real(*a, **k)
        )
        watcher = Watcher.open(settings(), ihc, he, tmp_path)
        assert len(calls) == 2
        for _ in range(2):
            watcher.look(Restaining(), Going())
        assert len(calls) == 6

    def test_a_translator_at_another_scale_is_compared_on_its_own_grid(self, watcher):
        class Coarse(Restaining):
            @property
            def wants(self):
                return Wants("ihc", mpp=0.3)

        look = watcher.look(Coarse(), Going())
        assert look.rows["virtual H&E"][0].shape == (267, 267, 3)
        assert look.values["centroid_recall"] > 0.85
        assert look.values["kid"] < 4 * watcher.limit

    def test_tiles_that_differ_in_colour_are_a_seam_and_pixelwise_ones_are_none(self, watcher):
        class Drifting(Pixelwise):
            """Shifts each tile's colour by its own mean, as instance normalisation does, and more."""

            @property
            def wants(self):
                return Wants("ihc", mpp=MPP, tile=self.tile)

            tile = None

            def translate(self, batch):
                means = batch.mean(axis=(1, 2, 3), keepdims=True)
                return np.clip(super().translate(batch) - 3.0 * (means - 205), 0, 255).astype(np.uint8)

        assert watcher.look(Pixelwise(), Going()).values["seam_ratio"] == 1.0
        assert watcher.look(Drifting(), Going()).values["seam_ratio"] > 1.2
        fixed = Drifting()
        fixed.tile = 64
        assert watcher.look(fixed, Going()).values["seam_ratio"] > 1.2
        fixed.tile = 2 * SIDE_PX
        assert math.isnan(watcher.look(fixed, Going()).values["seam_ratio"])

    def test_fields_without_nuclei_leave_the_score_undefined_and_the_watch_alive(self, he, tmp_path):
        bare = [Image(Erasing().translate(np.zeros((1, SIDE_PX, SIDE_PX, 3), np.uint8))[0], MPP, "bare")]
        found = Watcher.open(settings(), bare, he, tmp_path).watch(Nothing(), Going(), 1)
        assert found["nuclei_before"] == 0
        assert math.isnan(found["centroid_recall"])


@pytest.mark.heavy
class TestFiles:
    def test_an_epoch_leaves_a_grid_with_three_rows_and_a_line_in_the_selection(self, ihc, he, tmp_path):
        watcher = Watcher.open(settings(), ihc, he, tmp_path)
        learner = Returning()
        found = watcher.watch(Restaining(), learner, 3)
        assert learner.seen == (1, SIDE_PX, SIDE_PX, 3)
        with Pillow.open(tmp_path / "grids" / "epoch_0003.png") as grid:
            assert grid.width == 20 + 2 * (CELL_PX + 4)
            assert (grid.height - 3 * (CELL_PX + 4)) % 20 == 0
        kept = json.loads((tmp_path / "selection.json").read_text())
        assert kept["best_epoch"] == 3
        assert kept["epochs"] == [{"epoch": 3, **found}]
        assert kept["limit"] == pytest.approx(
            kept["kid_of_he"]["kid"] + 0.25 * (kept["kid_of_identity"]["kid"] - kept["kid_of_he"]["kid"])
        )
        assert kept["segmenter"] == {"ihc": "baseline/ihc", "he": "baseline/he"}
        assert len(kept["ihc_fields"]) == 2
        assert len(kept["he_fields"]) == 6

    def test_a_learner_without_a_way_back_has_two_rows(self, watcher):
        assert list(watcher.look(Restaining(), Going()).rows) == ["IHC", "virtual H&E"]
        assert list(watcher.look(Restaining(), Returning()).rows) == ["IHC", "virtual H&E", "cycle: IHC again"]

    def test_the_same_seed_gives_the_same_values(self, ihc, he, tmp_path, values):
        again = Watcher.open(settings(), ihc, he, tmp_path).look(Restaining(), Going()).values
        assert again == values["Restaining"]

    def test_one_empty_side_is_an_error(self, ihc, tmp_path):
        with pytest.raises(ConfigError, match=r"needs pictures of both stains; found 3 of IHC and 0 of H&E"):
            Watcher.open(settings(), ihc, [], tmp_path)

    def test_too_small_pictures_say_that_the_latest_epoch_is_taken(self, he, tmp_path):
        small = [synthetic_ihc(shape=(128, 128), nuclei=6, seed=1).source]
        watcher = Watcher.open(settings(), small, he, tmp_path)
        assert watcher.remarks[0].startswith("The distance to H&E cannot be measured (3 windows of 64 px")
        for epoch in (1, 2):
            watcher.watch(Restaining(), Going(), epoch)
        text = (tmp_path / "selection.json").read_text()
        assert "NaN" not in text
        assert json.loads(text)["best_epoch"] == 2
        assert json.loads(text)["epochs"][0]["kid"] is None

    def test_a_folder_that_takes_no_file_is_an_error(self, ihc, he, tmp_path):
        watcher = Watcher.open(settings(), ihc, he, tmp_path / "missing")
        with pytest.raises(WriteFailed, match=r"selection\.json"):
            watcher.watch(Restaining(), Going(), 1)


class TestRules:
    def row(self, kid, preservation):
        return {"kid": kid, "preservation": preservation}

    def rule(self, identity=8.0, own=0.0, given=None):
        return UnderLimit(Distance(identity, 0.1), Distance(own, 0.1), given)

    def test_the_score_is_the_mean_of_its_four_parts(self):
        parts = {"density_agreement": 0.9, "centroid_recall": 0.8, "brown_retention": 0.6, "count_ratio": 2.0}
        assert preservation_score(parts) == pytest.approx((0.9 + 0.8 + 0.6 + 0.5) / 4)
        assert preservation_score({**parts, "count_ratio": 0.5}) == preservation_score(parts)
        assert preservation_score({**parts, "brown_retention": NAN}) == pytest.approx((0.9 + 0.8 + 0.5) / 3)
        assert preservation_score({**parts, "density_agreement": -0.7}) == pytest.approx((0.8 + 0.6 + 0.5) / 4)
        assert preservation_score({**parts, "count_ratio": 0.0}) == pytest.approx((0.9 + 0.8 + 0.6) / 4)
        assert math.isnan(preservation_score(dict.fromkeys(parts, NAN)))

    def test_the_limit_is_a_quarter_of_the_way_to_the_ihc_or_the_users(self):
        assert self.rule(identity=8.0, own=0.4).limit == pytest.approx(2.3)
        assert self.rule(given=1.5).limit == 1.5

    @pytest.mark.parametrize(
        ("values", "best", "better"),
        [
            ((1.0, 0.5), None, True),
            ((1.0, 0.5), (5.0, 0.9), True),  # under the limit beats over it
            ((5.0, 0.9), (1.0, 0.5), False),
            ((2.0, 0.6), (1.0, 0.5), True),  # both under: preservation
            ((2.0, 0.5), (1.0, 0.5), False),  # and of equals the first
            ((2.0, NAN), (1.0, 0.5), False),
            ((2.0, 0.1), (1.0, NAN), True),
            ((5.0, 0.1), (6.0, 0.9), True),  # both over: distance
            ((6.0, 0.9), (5.0, 0.1), False),
            ((NAN, 0.1), (NAN, 0.9), True),  # no distance: the latest
        ],
    )
    def test_one_epoch_against_another(self, values, best, better):
        assert self.rule().is_better(self.row(*values), best and self.row(*best)) is better

    def test_where_he_differs_from_itself_as_much_as_from_ihc_the_nearest_is_best(self):
        rule = self.rule(identity=1.0, own=1.5)
        assert math.isnan(rule.limit)
        assert "differ as much among themselves" in rule.remark
        assert rule.is_better(self.row(0.5, 0.1), self.row(0.9, 0.9))
        assert not rule.is_better(self.row(0.9, 0.9), self.row(0.5, 0.1))

    def test_the_second_name_decides_between_equals(self):
        rule = Highest(("f1", "dice"))
        assert rule.is_better({"f1": 0.5, "dice": 0.7}, {"f1": 0.5, "dice": 0.6})
        assert not rule.is_better({"f1": NAN, "dice": 0.7}, {"f1": 0.0, "dice": 0.6})

    def test_training_that_goes_on_replaces_the_epochs_it_repeats(self, tmp_path):
        path, rule = tmp_path / "selection.json", Highest(("f1",))
        first = Selection(path, rule, {})
        for epoch, f1 in ((1, 0.3), (2, 0.9), (3, NAN)):
            first.add(epoch, {"f1": f1})
        again = Selection(path, rule, {})
        assert math.isnan(again.epochs[2]["f1"])
        again.add(2, {"f1": 0.2})
        kept = json.loads(path.read_text())
        assert [one["epoch"] for one in kept["epochs"]] == [1, 2]
        assert kept["best_epoch"] == 1

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"epochs": 3}', '{"epochs": [1]}'])
    def test_a_damaged_record_is_begun_again(self, tmp_path, text):
        path = tmp_path / "selection.json"
        path.write_text(text)
        Selection(path, Highest(("f1",)), {}).add(4, {"f1": 0.5})
        assert json.loads(path.read_text())["best_epoch"] == 4


class TestFields:
    def picture(self, height, width, name="p", tissue=(0, 0, None, None)):
        pixels = blank_glass((height, width))
        y, x, h, w = tissue
        pixels[y:h, x:w] = synthetic_he(shape=pixels[y:h, x:w].shape[:2], nuclei=5).source.pixels
        return Image(pixels, MPP, name)

    def test_they_lie_where_the_tissue_is(self):
        slide = self.picture(900, 900, tissue=(500, 0, None, 400))
        (field,) = draw_fields([slide], 1, side_px=200, mpp=MPP, seed=4)
        corner = [int(part[1:]) for part in field.name.split()[1:]]
        assert corner[0] > 380
        assert corner[1] < 320

    def test_every_picture_gives_one_before_any_gives_two(self):
        pictures = [self.picture(500, 500, name) for name in "abc"]
        names = [one.name[0] for one in draw_fields(pictures, 5, side_px=128, mpp=MPP, seed=0)]
        assert sorted(names[:3]) == ["a", "b", "c"]
        assert len(names) == 5

    def test_they_do_not_overlap_and_there_are_fewer_where_there_is_no_room(self):
        fields = draw_fields([self.picture(300, 300)], 9, side_px=128, mpp=MPP, seed=0)
        corners = [tuple(int(part[1:]) for part in one.name.split()[1:]) for one in fields]
        assert 1 <= len(corners) <= 4
        for a, b in itertools.combinations(corners, 2):
            assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 128

    def test_side_by_side_is_no_overlap(self):
        assert len(draw_fields([self.picture(128, 900)], 4, side_px=128, mpp=MPP, seed=0)) >= 3

    def test_a_smaller_picture_is_taken_whole_and_once(self):
        fields = draw_fields([self.picture(90, 400)], 3, side_px=128, mpp=MPP, seed=0)
        assert {one.shape for one in fields} == {(90, 128)}
        assert len(draw_fields([self.picture(90, 100)], 3, side_px=128, mpp=MPP, seed=0)) == 1

    def test_the_scale_is_that_of_the_training(self):
        (field,) = draw_fields([self.picture(400, 400)], 1, side_px=256, mpp=0.5, seed=0)
        assert field.shape == (200, 200)
        assert field.mpp == 0.5

    def test_a_picture_of_unknown_scale_is_taken_at_the_scale_of_the_training(self):
        unknown = Image(self.picture(200, 200).pixels, None, "p")
        assert draw_fields([unknown], 1, side_px=128, mpp=0.4, seed=0)[0].mpp == 0.4

    def test_glass_is_only_taken_where_there_is_nothing_else(self):
        glass, tissue = Image(blank_glass((200, 200)), MPP, "glass"), self.picture(200, 200, "tissue")
        assert [one.name.split()[0] for one in draw_fields([glass, tissue], 2, side_px=200, mpp=MPP, seed=0)] == [
            "tissue"
        ]
        assert len(draw_fields([glass], 2, side_px=200, mpp=MPP, seed=0)) == 1

    def test_the_same_seed_draws_the_same_and_another_one_others(self):
        pictures = [self.picture(500, 500, name) for name in "ab"]
        names = [[one.name for one in draw_fields(pictures, 3, side_px=128, mpp=MPP, seed=s)] for s in (1, 1, 2)]
        assert names[0] == names[1] != names[2]


class Known(Segmenter):
    """Gives the labels it was told, at the places of the pictures it was told."""

    name, api = "known", 1

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    @property
    def wants(self):
        return Wants("he", mpp=MPP)

    def segment(self, batch):
        return np.stack([self.answers[one.tobytes()] for one in batch])


@pytest.fixture(scope="module")
def samples():
    return [synthetic_he(shape=(128, 128), nuclei=nuclei, seed=nuclei) for nuclei in (6, 7, 11)]


class TestSegmenters:
    def known(self, watcher, change):
        return Known({one.source.pixels.tobytes(): change(one.truth.array) for one in watcher.samples})

    def open(self, samples, folder, **changes):
        return Watcher.open(settings(pictures=3, **changes), [], [], folder, labelled=samples)

    def test_the_truth_is_perfect_and_nothing_is_worthless(self, samples, tmp_path):
        watcher = self.open(samples, tmp_path)
        perfect = watcher.watch(self.known(watcher, lambda truth: truth), Going(), 1)
        empty = watcher.watch(self.known(watcher, np.zeros_like), Going(), 2)
        assert perfect == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "dice": 1.0}
        assert (empty["f1"], empty["recall"], empty["dice"]) == (0.0, 0.0, 0.0)
        assert math.isnan(empty["precision"])
        assert watcher.is_better(perfect, empty)
        assert not watcher.is_better(empty, perfect)
        assert json.loads((tmp_path / "selection.json").read_text())["best_epoch"] == 1

    def test_one_nucleus_that_is_missed_lowers_recall_over_all_pictures(self, samples, tmp_path):
        watcher = self.open(samples, tmp_path)
        found = watcher.look(
            self.known(watcher, lambda truth: np.where(truth == truth.max(), 0, truth).astype(np.int32)), Going()
        )
        assert found.values["recall"] == pytest.approx((5 + 6 + 10) / (6 + 7 + 11))
        assert found.values["precision"] == 1.0

    def test_values_are_those_of_the_metrics_of_a_benchmark(self, samples, tmp_path):
        found = self.open(samples, tmp_path).look(build("segmenter", "baseline/he").plugin, Going()).values
        scores = evaluate(samples, "identity", "baseline/he", metrics=["matching", "dice"]).pooled
        assert found["f1"] == pytest.approx(scores["matching/f1@0.50"])
        assert found["dice"] == pytest.approx(scores["dice/dice_pooled"])

    def test_the_grid_shows_the_picture_and_what_was_found(self, samples, tmp_path):
        watcher = self.open(samples, tmp_path)
        watcher.watch(self.known(watcher, lambda truth: truth), Going(), 12)
        with Pillow.open(tmp_path / "grids" / "epoch_0012.png") as grid:
            assert grid.size == (20 + 3 * (CELL_PX + 4), 40 + 2 * (CELL_PX + 4))

    def test_a_large_picture_is_cut_with_its_truth(self, tmp_path):
        large = synthetic_he(shape=(300, 260), nuclei=30, seed=3)
        (cut,) = labelled_fields([large], 4, side_px=128, seed=0)
        y, x = (int(part[1:]) for part in cut.source.name.split()[1:])
        assert cut.source.shape == cut.truth.shape == (128, 128)
        assert np.array_equal(cut.source.pixels, large.source.pixels[y : y + 128, x : x + 128])
        assert np.array_equal(cut.truth.array > 0, large.truth.array[y : y + 128, x : x + 128] > 0)

    def test_pictures_without_nuclei_have_no_rates(self, tmp_path):
        blank = synthetic_he(shape=(128, 128), nuclei=0)
        watcher = self.open([blank], tmp_path)
        assert math.isnan(watcher.watch(self.known(watcher, lambda truth: truth), Going(), 1)["f1"])
        assert isinstance(watcher.samples[0], Sample)


class TestGrid:
    def test_pictures_stand_in_their_places(self, tmp_path):
        red, blue = (np.full((10, 20, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 0, 250)))
        path = write_grid(tmp_path / "a" / "g.png", {"one": [red, blue], "two": [blue]}, title="t", captions=["x", "y"])
        with Pillow.open(path) as grid:
            pixels = np.asarray(grid)
        step = CELL_PX + 4
        assert pixels[50, 30].tolist() == [250, 0, 0]
        assert pixels[50, 30 + step].tolist() == [0, 0, 250]
        assert pixels[50 + step, 30].tolist() == [0, 0, 250]
        assert pixels[50 + step, 30 + step].tolist() == [255, 255, 255]
        assert pixels[40 + CELL_PX // 2 + 5, 30].tolist() == [255, 255, 255]  # a wide picture is not stretched
        assert pixels[:40].min() < 100  # the text

    def test_a_long_title_takes_as_many_lines_as_it_needs(self, tmp_path):
        picture = {"one": [np.full((64, 64, 3), 90, np.uint8)]}
        title = "   ".join(f"value_{number} 0.123" for number in range(12))
        with (
            Pillow.open(write_grid(tmp_path / "a.png", picture, title="t")) as short,
            Pillow.open(write_grid(tmp_path / "b.png", picture, title=title)) as long,
        ):
            assert long.width == short.width
            lines, rest = divmod(long.height - short.height, 20)
            assert (lines >= 2, rest) == (True, 0)
            margin = np.asarray(long.convert("L"))[:, -3:]
            assert margin[: (lines + 2) * 20].min() == 255  # nothing runs over the edge

    def test_a_letter_that_the_font_lacks_is_no_error(self, tmp_path):
        assert write_grid(tmp_path / "g.png", {"µ": [np.zeros((4, 4, 3), np.uint8)]}, title="日本").exists()
