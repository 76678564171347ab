"""What a training learns from: which pictures, which patches, in which order, and what it says about those it cannot use."""

import csv
import json
import threading
from collections import Counter
from dataclasses import replace
from itertools import chain
from types import MappingProxyType

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from stainbridge import TrainConfig
from stainbridge.errors import ConfigError, DataCorrupt, NoPictures, ScaleUnknown, UnreadablePicture
from stainbridge.records import Image
from stainbridge.scale import Rescaled
from stainbridge.testing import blank_glass, synthetic_he, synthetic_ihc
from stainbridge.training import tissue
from stainbridge.training.data import check_same, feed, numbers_of, open_data, write_lists
from stainbridge.training.memory import Memory
from stainbridge.training.patches import Cutting, Patches, changed
from stainbridge.training.settings import put_together
from stainbridge.training.sources import Listed
from stainbridge.training.tissue import share_of, survey

GLASS = (242, 243, 244)
TISSUE = (190, 120, 170)


def save(path, pixels, mpp=None):
    """Write a PNG; `mpp` goes into it as dots per inch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dpi = None if mpp is None else (25400 / mpp, 25400 / mpp)
    Pillow.fromarray(pixels).save(path, dpi=dpi) if dpi else Pillow.fromarray(pixels).save(path)
    return path


def ihc(seed=0, side=64):
    return synthetic_ihc(shape=(side, side), nuclei=side // 16 - 1, seed=seed).source.pixels


def half_tissue(height=96, width=192):
    """Glass on the left, tissue on the right."""
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    pixels[:, width // 2 :] = TISSUE
    return pixels


@pytest.fixture
def sides(tmp_path):
    """Two pictures of 64 px of each stain, 0.25 um per pixel."""
    for seed in range(2):
        save(tmp_path / "ihc" / f"i{seed}.png", ihc(seed), 0.25)
        save(tmp_path / "he" / f"h{seed}.png", synthetic_he(shape=(64, 64), nuclei=4, seed=seed).source.pixels, 0.25)
    return tmp_path


def config(folder, **changes):
    values = {"ihc": folder / "ihc", "he": folder / "he", "patch_px": 32, "tissue": 0.0, "flips": "none"}
    return TrainConfig(plugin="any", **{**values, **changes})


def opened(folder, **changes):
    return open_data(config(folder, **changes), "unpaired")


class TestWhichPictures:
    def test_folders_are_searched_to_the_bottom_and_hidden_files_left_out(self, sides):
        save(sides / "ihc" / "case" / "deep" / "x.png", ihc(), 0.25)
        save(sides / "ihc" / ".thumbnails" / "y.png", ihc(), 0.25)
        save(sides / "ihc" / ".z.png", ihc(), 0.25)
        assert [one.file for one in opened(sides).listed if one.side == "ihc"] == [
            "ihc/case/deep/x.png",
            "ihc/i0.png",
            "ihc/i1.png",
        ]

    def test_files_and_patterns_can_be_named(self, sides):
        chosen = [sides / "ihc" / "i1.png", sides / "ihc" / "i*.png"]
        assert [one.file for one in opened(sides, ihc=chosen).listed if one.side == "ihc"] == ["i1.png", "i0.png"]

    @pytest.mark.parametrize("side", ["ihc", "he"])
    def test_an_empty_side_is_named(self, sides, side):
        (sides / "empty" / "inside").mkdir(parents=True)
        with pytest.raises(NoPictures, match=rf"The {side} side is empty: '.*empty' holds no picture.*\n.*--{side}"):
            opened(sides, **{side: sides / "empty"})
        with pytest.raises(NoPictures, match=rf"The {side} side is empty: '.*nowhere' does not exist"):
            opened(sides, **{side: [sides / side, sides / "nowhere"]})

    def test_bad_files_are_skipped_and_listed_with_the_reason(self, sides):
        whole = (sides / "ihc" / "i0.png").read_bytes()
        (sides / "ihc" / "cut.png").write_bytes(whole[: len(whole) // 2])
        (sides / "ihc" / "text.png").write_text("no picture")
        (sides / "ihc" / "void.tif").write_bytes(b"")
        save(sides / "ihc" / "grey.png", np.zeros((64, 64), np.uint8))
        found = opened(sides)
        write_lists(sides, found)
        with open(sides / "skipped.csv", newline="") as file:
            rows = {row["file"]: row["reason"] for row in csv.DictReader(file)}
        assert rows.keys() == {f"ihc/{name}" for name in ("cut.png", "text.png", "void.tif", "grey.png")}
        assert "truncated or damaged" in rows["ihc/cut.png"]
        assert "0 bytes" in rows["ihc/void.tif"]
        assert "is grey" in rows["ihc/grey.png"]
        assert rows["ihc/grey.png"].endswith("Export it as 8-bit RGB.")
        assert {one.file for one in found.listed if one.side == "ihc"} == {"ihc/i0.png", "ihc/i1.png"}

    def test_a_side_of_bad_files_only_is_an_error_with_their_reasons(self, sides):
        for path in (sides / "he").iterdir():
            path.write_bytes(b"\x89PNG\r\n\x1a\n")
        with pytest.raises(
            NoPictures, match=r"The he side is empty: none of its 2 pictures can be used\.\n  he/h0\.png: .*truncated"
        ):
            opened(sides)

    def test_a_picture_smaller_than_the_crop_is_skipped_at_the_scale_of_the_training(self, sides):
        save(sides / "ihc" / "small.png", ihc(side=48), 0.25)
        save(sides / "ihc" / "coarse.png", ihc(side=48), 0.5)  # 96 px at 0.25
        found = opened(sides, patch_px=64)
        assert {one.file: one.reason for one in found.skipped} == {
            "ihc/small.png": "smaller than the crop: 48 x 48 px at 0.25 um per pixel, 64 x 64 needed"
        }
        assert "ihc/coarse.png" in {one.file for one in found.listed}

    def test_a_picture_without_a_scale_is_named(self, sides):
        save(sides / "he" / "bare.png", ihc())
        with pytest.raises(ScaleUnknown, match=r"'he/bare\.png' of the he side has no pixel size\.\nPass --mpp 0\.25"):
            opened(sides)

    def test_a_given_scale_is_for_pictures_that_do_not_say(self, sides):
        save(sides / "he" / "bare.png", ihc())
        scales = {one.file: one.mpp for one in opened(sides, he_mpp=0.5).listed if one.side == "he"}
        assert scales == {"he/bare.png": 0.5, "he/h0.png": pytest.approx(0.25), "he/h1.png": pytest.approx(0.25)}

    def test_a_picture_of_glass_is_skipped(self, sides):
        save(sides / "ihc" / "glass.png", blank_glass((64, 64)), 0.25)
        (skipped,) = opened(sides, tissue=0.25).skipped
        assert skipped.file == "ihc/glass.png"
        assert "no patch of it is tissue to at least 25%" in skipped.reason

    def test_held_out_pictures_are_looked_at_and_not_learned_from(self, sides):
        found = opened(sides, watch={"held_out": "i0*"})
        assert [one.name for one in found.watched.ihc] == ["i0"]
        assert [one.listed.file for one in found.sides["ihc"].pictures] == ["ihc/i1.png"]
        assert [one.name for one in found.watched.he] == ["h0", "h1"]
        with pytest.raises(NoPictures, match=r"held_out = .* holds out all of it"):
            opened(sides, watch={"held_out": ["i*"]})

    @pytest.mark.parametrize("pattern", ["case/*", "case/", "ihc/case/*", "./case/x*", "ihc/case/x.png", "x.png"])
    def test_folders_can_be_held_out(self, sides, pattern):
        save(sides / "ihc" / "case" / "x.png", ihc(7), 0.25)
        found = opened(sides, watch={"held_out": [pattern, "h1.png"]})
        assert [one.name for one in found.watched.ihc] == ["x"]
        assert [one.listed.file for one in found.sides["ihc"].pictures] == ["ihc/i0.png", "ihc/i1.png"]
        assert found.watched.held_out == {"ihc": ["ihc/case/x.png"], "he": ["he/h1.png"]}

    def test_nothing_held_out_is_written_down_as_nothing(self, sides):
        assert opened(sides).watched.held_out == {"ihc": [], "he": []}

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            ("j0*", r"'j0\*' names none of the 5 pictures of ihc and he\. Nearest: .*'i0\.png'"),
            ("caze/*", r"'caze/\*' names none .* Nearest: 'case/x\.png'"),
            ("case", r"'case' names none .* It is the name of a folder: write 'case/\*'\."),
            ("grey*", r"'grey\*' names only pictures that cannot be used\.\n  ihc/grey\.png: .*is grey"),
        ],
    )
    def test_a_pattern_that_holds_nothing_out_is_refused(self, sides, pattern, message):
        save(sides / "ihc" / "case" / "x.png", ihc(7), 0.25)
        save(sides / "ihc" / "grey.png", np.zeros((64, 64), np.uint8))
        with pytest.raises(ConfigError, match=message):
            opened(sides, watch={"held_out": ["i0*", pattern]})

    def test_what_a_training_wrote_is_not_learned_from(self, sides):
        for run in ("run", "deep/other"):
            save(sides / "ihc" / run / "grids" / "epoch_0001.png", ihc(8), 0.25)
            (sides / "ihc" / run / "training.json").write_text("{}")
        save(sides / "ihc" / "mine" / "grids" / "epoch_0001.png", ihc(9), 0.25)
        for named in (sides / "ihc", sides / "ihc" / "**" / "*.png"):
            found = open_data(config(sides, ihc=named), "unpaired", out=sides / "ihc" / "mine")
            assert {one.listed.file.rpartition("/")[2] for one in found.sides["ihc"].pictures} == {"i0.png", "i1.png"}
            assert len(found.skipped) == 3
            assert all("folder of a training" in one.reason for one in found.skipped)
        with pytest.raises(NoPictures, match=r"The ihc side is empty: .*run' holds only what a training wrote"):
            opened(sides, ihc=[sides / "ihc" / "i0.png", sides / "ihc" / "run"])
        file = sides / "ihc" / "run" / "grids" / "epoch_0001.png"
        assert opened(sides, ihc=file).listed[0].file == "epoch_0001.png"

    def test_the_same_pictures_on_both_sides_are_refused(self, sides):
        whole = (sides / "ihc" / "i1.png").read_bytes()
        (sides / "he" / "copy.png").write_bytes(whole)
        with pytest.raises(ConfigError, match=r"'he/copy\.png' of the he side is 'ihc/i1\.png' of the ihc side, byte"):
            opened(sides)
        (sides / "he" / "copy.png").unlink()
        with pytest.raises(ConfigError, match=r"and so are 1 more\.\n--ihc \S+ holds what --he names"):
            opened(sides, ihc=sides)
        with pytest.raises(ConfigError, match=r"Give each side a folder, or a pattern"):
            opened(sides, he=sides / "ihc")

    def test_a_tiled_tiff_is_read_by_window(self, sides):
        pixels = ihc(side=256)
        tifffile.imwrite(sides / "ihc" / "slide.tif", pixels, tile=(64, 64), photometric="rgb", compression="zlib")
        found = opened(sides, ihc=sides / "ihc" / "slide.tif", ihc_mpp=0.25)
        assert np.array_equal(found.watched.ihc[0].read(10, 20, 30, 40), pixels[10:40, 20:60])
        patch = found.batch(1, [0]).ihc[0]
        y, x = next(found.sides["ihc"].corners(1, 0))[1:]
        assert np.array_equal(patch, pixels[y : y + 32, x : x + 32])


class TestGoingOnNeedsTheSamePictures:
    @pytest.fixture
    def before(self, sides):
        write_lists(sides, opened(sides))
        return sides

    def test_the_same_pictures_may_lie_elsewhere(self, before):
        (before / "moved").mkdir()
        (before / "ihc").rename(before / "moved" / "ihc")
        check_same(before, opened(before, ihc=before / "moved" / "ihc"))

    def test_a_changed_pixel_is_found(self, before):
        save(before / "he" / "h1.png", ihc(5), 0.25)
        with pytest.raises(DataCorrupt, match=r"'he/h1\.png' of 'he' has (size|sha256) "):
            check_same(before, opened(before))

    def test_a_missing_and_a_new_picture_are_found(self, before):
        (before / "ihc" / "i1.png").rename(before / "ihc" / "i2.png")
        with pytest.raises(DataCorrupt, match=r"'ihc/i1\.png' of 'ihc' is missing or cannot be used any more"):
            check_same(before, opened(before))
        (before / "ihc" / "i2.png").rename(before / "ihc" / "i1.png")
        save(before / "ihc" / "new.png", ihc(9), 0.25)
        with pytest.raises(DataCorrupt, match=r"'ihc/new\.png' of 'ihc' is new"):
            check_same(before, opened(before))

    @pytest.mark.parametrize("text", [None, "", "side,file\n", "\0"])
    def test_a_list_that_is_gone_or_damaged_is_an_error_of_ours(self, before, text):
        (before / "data.csv").unlink() if text is None else (before / "data.csv").write_text(text)
        with pytest.raises(DataCorrupt, match=r"data\.csv', the pictures that the training began with, cannot be read"):
            check_same(before, opened(before))

    def test_another_order_is_found(self, before):
        files = sorted((before / "ihc").iterdir())
        write_lists(before, opened(before, ihc=files))
        with pytest.raises(DataCorrupt, match="another order"):
            check_same(before, opened(before, ihc=files[::-1]))


class TestTissue:
    def test_corners_are_numbered_without_gap_or_repeat(self):
        view = Image(half_tissue(80, 120), 0.25)
        places = survey(view, patch_px=32, least=0.5)
        corners = [places.corner(number) for number in range(places.count)]
        assert len(set(corners)) == places.count
        rows, columns = zip(*corners, strict=True)
        assert (min(rows), max(rows), max(columns)) == (0, 80 - 32, 120 - 32)

    def test_places_are_those_of_a_count_pixel_by_pixel(self):
        pixels = half_tissue()
        places = survey(Image(pixels, 0.25), patch_px=32, least=0.5)
        found = np.zeros((96 - 31, 192 - 31), bool)
        for number in range(places.count):
            found[places.corner(number)] = True
        first = np.flatnonzero(found.all(axis=0))[0]
        # Stain begins at column 96 and tissue 12 um, 48 px, before it: a patch of 32 px holds half from column 32 on. Cells are 16 px.
        assert 32 - 16 <= first <= 32 + 16
        assert not found[:, :first].any()
        assert found[:, first:].all()

    def test_every_corner_counts_where_no_tissue_is_asked_for(self):
        assert survey(Image(blank_glass((50, 70)), 0.25), patch_px=32, least=0.0).count == 19 * 39

    def test_patches_have_the_tissue_that_was_asked_for(self, tmp_path):
        save(tmp_path / "ihc" / "a.png", half_tissue(), 0.25)
        save(tmp_path / "he" / "a.png", half_tissue(98), 0.25)
        found = opened(tmp_path, tissue=0.75)
        batch = found.batch(1, range(60))
        glass = found.sides["ihc"].pictures[0].places.glass
        assert min(share_of(one, 0.25, glass) for one in batch.ihc) >= 0.75

    def test_corners_are_drawn_evenly(self, tmp_path):
        save(tmp_path / "ihc" / "a.png", half_tissue(64, 128), 0.25)
        save(tmp_path / "he" / "a.png", half_tissue(66, 128), 0.25)
        side = opened(tmp_path, tissue=0.0).sides["ihc"]
        drawn = np.array([next(side.corners(1, number))[1:] for number in range(3000)])
        for axis, length in ((0, 33), (1, 97)):
            counts = np.histogram(drawn[:, axis], bins=8, range=(0, length))[0]
            assert np.abs(counts - 3000 / 8).max() < 5 * np.sqrt(3000 / 8)

    def test_pale_ground_between_stained_nuclei_is_tissue_and_a_speck_of_dust_is_not(self):
        pixels = np.full((256, 256, 3), GLASS, np.uint8)
        pixels[114:126, 114:126] = (60, 60, 60)
        dust = survey(Image(pixels, 0.25), patch_px=256, least=0.25)
        assert dust.count == 0
        for y in range(16, 256, 64):
            for x in range(16, 256, 64):
                pixels[y : y + 24, x : x + 24] = (110, 120, 190)
        nuclei = survey(Image(pixels, 0.25), patch_px=256, least=0.95)
        assert nuclei.count == 1

    def test_black_margins_are_no_tissue(self):
        pixels = np.zeros((64, 128, 3), np.uint8)
        pixels[:, :32] = GLASS
        assert survey(Image(pixels, 0.25), patch_px=32, least=0.25).count == 0

    def test_a_large_picture_is_probed(self, monkeypatch):
        view = Image(half_tissue(256, 512), 0.25)
        exact = survey(view, patch_px=64, least=0.5)
        reads = []
        spy = replace(view)
        object.__setattr__(spy, "read", lambda y, x, h, w: reads.append(h * w) or view.read(y, x, h, w))
        monkeypatch.setattr(tissue, "_WHOLE_PX", 1)
        monkeypatch.setattr(tissue, "_PROBES", 128)
        monkeypatch.setattr(tissue, "_PROBE_UNITS", 1)
        probed = survey(spy, patch_px=64, least=0.5)
        assert probed.step_px > exact.step_px
        assert sum(reads) < 256 * 512 / 2
        assert probed.count == pytest.approx(exact.count, rel=0.2)
        assert probed.area_px == pytest.approx(exact.area_px, rel=0.2)


class Plain:
    """A picture of numbers: each pixel tells its place and its picture."""

    def __init__(self, number, side=64, *, patches=1.0, broken=lambda y, x: False):
        y, x = np.mgrid[:side, :side].astype(np.uint8)
        self.pixels = np.stack([y, x, np.full_like(y, number)], axis=2)
        self.labels = (np.arange(side * side, dtype=np.int32).reshape(side, side) // 5) % 11
        self.listed = Listed("any", f"p{number}", 1, "", 0.25, side, side, patches)
        self.places = survey(Image(self.pixels, 0.25), patch_px=32, least=0.0)
        self.broken = broken

    def window(self, y, x, side_px):
        if self.broken(y, x):
            raise UnreadablePicture("a tile is damaged")
        return (self.pixels[y : y + side_px, x : x + side_px],)


class PlainLabelled(Plain):
    def window(self, y, x, side_px):
        here = slice(y, y + side_px), slice(x, x + side_px)
        return self.pixels[here], self.labels[here], self.labels[here].astype(np.uint8)


CUTTING = Cutting(seed=3, mpp=0.25, patch_px=32)


class TestWhichPatches:
    def test_each_is_a_function_of_seed_side_epoch_and_number(self):
        pictures = [Plain(number, patches=4.0) for number in range(3)]
        side = Patches(pictures, CUTTING)
        forwards = [side.patch(2, number)[0] for number in range(30)]
        again = Patches(pictures, CUTTING)
        backwards = [again.patch(2, number)[0] for number in reversed(range(30))][::-1]
        assert np.array_equal(forwards, backwards)
        others = (
            Patches(pictures, replace(CUTTING, seed=4)).patch(2, 0)[0],
            Patches(pictures, CUTTING, side=1).patch(2, 0)[0],
            side.patch(3, 0)[0],
            side.patch(2, 1)[0],
        )
        assert not any(np.array_equal(forwards[0], other) for other in others)

    def test_pictures_as_large_as_the_patch_are_each_seen_once_in_a_round(self):
        side = Patches([Plain(number, side=32) for number in range(7)], CUTTING)
        assert side.count == 7
        for epoch in (1, 2):
            rounds = [
                [int(side.patch(epoch, 7 * again + number)[0][0, 0, 2]) for number in range(7)] for again in (0, 1)
            ]
            assert sorted(rounds[0]) == sorted(rounds[1]) == list(range(7))
            assert rounds[0] != rounds[1]

    def test_pictures_are_seen_as_often_as_they_hold_tissue(self):
        side = Patches([Plain(0, patches=1.0), Plain(1, patches=3.0)], CUTTING)
        seen = Counter(next(side.corners(1, number))[0] for number in range(4 * 50))
        assert seen == {0: 50, 1: 150}

    def test_a_fixed_set_is_drawn_once_and_seen_in_another_order_each_epoch(self):
        side = Patches([Plain(0), Plain(1)], CUTTING, fixed=5)
        epochs = [[next(side.corners(epoch, number)) for number in range(5)] for epoch in (1, 2, 9)]
        assert len(set(epochs[0])) == 5
        assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
        assert epochs[0] != epochs[1]

    def test_fresh_patches_differ_between_epochs(self):
        side = Patches([Plain(0, patches=10.0)], CUTTING)
        drawn = [{next(side.corners(epoch, number)) for number in range(10)} for epoch in (1, 2)]
        assert len(drawn[0] & drawn[1]) < 3

    @pytest.mark.parametrize("world", [2, 3])
    def test_ranks_together_see_what_one_process_with_a_larger_batch_sees(self, world):
        for step in (0, 4):
            ranks = [numbers_of(step, batch_size=2, rank=rank, world=world) for rank in range(world)]
            assert all(number % world == rank for rank, numbers in enumerate(ranks) for number in numbers)
            assert sorted(chain.from_iterable(ranks)) == numbers_of(step, batch_size=2 * world, rank=0, world=1)

    def test_damage_is_gone_around_and_remembered(self):
        side = Patches([Plain(0, broken=lambda y, x: x < 16)], CUTTING)
        corners = [side.patch(1, number)[0][0, 0, 1] for number in range(20)]
        assert min(corners) >= 16
        assert side.damaged == {"p0": "a tile is damaged"}

    def test_damage_everywhere_is_an_error(self):
        with pytest.raises(UnreadablePicture, match="a tile is damaged"):
            Patches([Plain(0, broken=lambda y, x: True)], CUTTING).patch(1, 0)


class TestChanges:
    def variants(self, flips, count=64):
        patch = np.arange(32 * 32 * 3, dtype=np.uint16).reshape(32, 32, 3).astype(np.uint8)
        cutting = replace(CUTTING, flips=flips)
        found = {changed((patch,), cutting, np.random.default_rng(seed))[0].tobytes() for seed in range(count)}
        return patch, found

    def test_no_flips_leave_the_patch_as_it_is(self):
        patch, found = self.variants("none")
        assert found == {patch.tobytes()}

    def test_horizontal_flips_are_two_views(self):
        patch, found = self.variants("horizontal")
        assert found == {patch.tobytes(), np.fliplr(patch).tobytes()}

    def test_all_flips_are_the_eight_views_of_a_square(self):
        patch, found = self.variants("all")
        square = {np.rot90(one, turn).tobytes() for one in (patch, np.fliplr(patch)) for turn in range(4)}
        assert found == square

    @pytest.mark.parametrize("by", ["bicubic", "bilinear"])
    def test_resizing_is_pillows_and_the_cut_lies_anywhere(self, by):
        patch = ihc(side=32)
        large = np.asarray(Pillow.fromarray(patch).resize((40, 40), Pillow.Resampling[by.upper()]))
        cuts = {large[y : y + 32, x : x + 32].tobytes(): (y, x) for y in range(9) for x in range(9)}
        cutting = replace(CUTTING, resize_px=40, resize_by=by)
        places = [cuts[changed((patch,), cutting, np.random.default_rng(seed))[0].tobytes()] for seed in range(200)]
        assert {y for y, _ in places} == {x for _, x in places} == set(range(9))

    def test_labels_go_where_their_pixels_go(self):
        side = Patches([PlainLabelled(0)], replace(CUTTING, flips="all"))
        for number in range(12):
            pixels, labels, types = side.patch(1, number)
            truth = side.pictures[0].labels[pixels[..., 0], pixels[..., 1]]
            assert np.array_equal(types, truth)
            assert set(np.unique(labels)) == set(range(len(np.unique(np.append(truth, 0)))))

    def test_resized_labels_stay_under_their_pixels(self):
        labels = np.zeros((32, 32), np.int32)
        labels[8:24, 4:12] = 7
        pixels = np.where(labels[..., None] > 0, 255, 0).repeat(3, axis=2).astype(np.uint8)
        for seed in range(5):
            seen, shown = changed(
                (pixels, labels), replace(CUTTING, resize_px=48, flips="all"), np.random.default_rng(seed)
            )
            assert ((seen[..., 0] > 127) == (shown == 7)).mean() > 0.97
            assert set(np.unique(shown)) <= {0, 7}


class TestPixels:
    def test_patches_are_cut_at_the_scale_of_the_training(self, tmp_path):
        pixels = ihc(side=96)
        save(tmp_path / "ihc" / "a.png", pixels, 0.5)
        save(tmp_path / "he" / "a.png", pixels, 0.25)
        found = opened(tmp_path)
        own = found.listed[0].mpp
        whole = Rescaled(Image(pixels, own), 0.25).read(0, 0, 192, 192)
        for number in range(5):
            y, x = next(found.sides["ihc"].corners(1, number))[1:]
            assert np.array_equal(found.batch(1, [number]).ihc[0], whole[y : y + 32, x : x + 32])

    @pytest.mark.parametrize("changes", [{"workers": 1}, {"workers": 4}, {"memory_mb": 0}])
    def test_threads_and_memory_change_nothing(self, sides, changes):
        expected = opened(sides, flips="all", resize_px=40).batch(1, range(12))
        found = opened(sides, flips="all", resize_px=40, **changes)
        batches = list(feed(found, 1, [[n, n + 1] for n in range(0, 12, 2)], workers=changes.get("workers", 2)))
        assert np.array_equal(np.concatenate([one.ihc for one in batches]), expected.ihc)
        assert np.array_equal(np.concatenate([one.he for one in batches]), expected.he)

    def test_memory_keeps_to_its_limit(self):
        memory, made = Memory(10), []
        for key in "abcab":
            memory.get(key, lambda key=key: (made.append(key), 4))
        assert made == list("abcab")
        memory.get("b", lambda: pytest.fail("it was kept"))
        memory.get("huge", lambda: ("huge", 100))
        memory.get("huge", lambda: pytest.fail("what was asked for last is kept"))


class Counting:
    """Data that tells how far ahead it is read."""

    def __init__(self, fails_at=None):
        self.read, self.fails_at, self.lock = 0, fails_at, threading.Lock()

    def batch(self, epoch, numbers):
        with self.lock:
            self.read += 1
        if numbers[0] == self.fails_at:
            raise UnreadablePicture("gone")
        return numbers[0]


class TestReadingAhead:
    def test_batches_come_in_order_and_not_many_too_early(self):
        data = Counting()
        ahead = [
            data.read - number for number in feed(data, 1, [[n] for n in range(200)], workers=3) if number is not None
        ]
        assert max(ahead) <= 8

    def test_a_failure_is_raised_at_its_own_batch(self):
        seen = []
        with pytest.raises(UnreadablePicture, match="gone"):
            seen.extend(feed(Counting(fails_at=5), 1, [[n] for n in range(50)], workers=2))
        batches = feed(Counting(fails_at=5), 1, [[n] for n in range(50)], workers=2)
        assert [next(batches) for _ in range(5)] == list(range(5))


class TestTruth:
    @pytest.fixture
    def labelled(self, tmp_path):
        for seed in range(3):
            sample = synthetic_he(shape=(64, 64), nuclei=3, seed=seed)
            save(tmp_path / "all" / f"p{seed}.png", sample.source.pixels, 0.25)
            save(tmp_path / "all" / f"p{seed}_labels.png", sample.truth.array.astype(np.uint16))
        return tmp_path / "all"

    def types(self, folder, *numbers):
        for number in numbers:
            labels = np.asarray(Pillow.open(folder / f"p{number}_labels.png"))
            save(folder / f"p{number}_types.png", (labels > 0).astype(np.uint8) * (1 + labels % 2).astype(np.uint8))

    def open(self, folder, **changes):
        values = {"patch_px": 32, "tissue": 0.0, "flips": "all", **changes}
        return open_data(TrainConfig(plugin="any", pictures=folder, **values), "labelled")

    def test_labels_and_pixels_come_from_one_place(self, labelled):
        data = self.open(labelled, flips="none")
        batch = data.batch(1, [0, 1, 2, 3])
        assert (batch.pixels.dtype, batch.labels.dtype, batch.types) == (np.uint8, np.int32, None)
        for number, (pixels, labels) in enumerate(zip(batch.pixels, batch.labels, strict=True)):
            index, y, x = next(data.sides["pictures"].corners(1, number))
            sample = synthetic_he(shape=(64, 64), nuclei=3, seed=index)
            truth = sample.truth.array[y : y + 32, x : x + 32]
            assert np.array_equal(pixels, sample.source.pixels[y : y + 32, x : x + 32])
            assert np.array_equal(labels > 0, truth > 0)
            assert len(set(zip(labels.ravel().tolist(), truth.ravel().tolist(), strict=True))) == len(np.unique(truth))

    def test_labels_are_rescaled_with_their_picture(self, labelled):
        data = self.open(labelled, mpp=0.125, flips="none")
        index, y, x = next(data.sides["pictures"].corners(1, 0))
        truth = synthetic_he(shape=(64, 64), nuclei=3, seed=index).truth.array.repeat(2, axis=0).repeat(2, axis=1)
        labels = data.batch(1, [0]).labels[0]
        assert np.array_equal(labels > 0, truth[y : y + 32, x : x + 32] > 0)

    def test_types_ride_along_where_every_picture_has_them(self, labelled):
        self.types(labelled, 0, 1, 2)
        batch = self.open(labelled).batch(1, [0, 1])
        assert batch.types.dtype == np.uint8
        assert np.array_equal(batch.types > 0, batch.labels > 0)
        assert set(np.unique(batch.types)) <= {0, 1, 2}

    def test_pictures_without_types_are_skipped_where_others_have_them(self, labelled):
        self.types(labelled, 0, 2)
        (skipped,) = self.open(labelled).skipped
        assert (skipped.file, skipped.reason) == ("all/p1.png", "it has no p1_types file, which others have")

    def test_truth_of_another_size_is_skipped_with_the_reason(self, labelled):
        save(labelled / "p1_labels.png", np.zeros((20, 20), np.uint16))
        (skipped,) = self.open(labelled).skipped
        assert skipped.file == "all/p1.png"
        assert "they must have one size" in skipped.reason

    def test_samples_are_read_at_the_pictures_own_scale(self, labelled):
        (sample, *_), data = self.open(labelled, mpp=0.125).watched.labelled, self.open(labelled)
        assert sample.truth.shape == (64, 64)
        assert len(data.watched.labelled) == 3
        assert {one.side for one in data.listed} == {"pictures"}


PRESETS = MappingProxyType({"paper": {"epochs": 30, "batch_size": 10, "resize_px": 286, "learner": {"a": 1, "b": 2}}})


class TestSettings:
    def test_preset_then_file_then_options_then_set(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text('preset = "paper"\nepochs = 20\nihc = "ihc"\n[learner]\nb = 3\nc = 4\n')
        made = put_together(
            "any",
            PRESETS,
            file=file,
            options={"he": ["/he"], "learner": {"c": 5}},
            settings=["batch_size=2", "learner.d=[1, 2]", "watch.every=0"],
        )
        assert (made.epochs, made.batch_size, made.resize_px, made.watch.every) == (20, 2, 286, 0)
        assert made.learner == {"a": 1, "b": 3, "c": 5, "d": [1, 2]}
        assert [str(path) for path in made.ihc + made.he] == [str(tmp_path / "ihc"), "/he"]

    def test_an_option_names_another_preset_than_the_file(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text('preset = "papper"\n')
        assert put_together("any", PRESETS, file=file, options={"preset": "paper"}).epochs == 30
        with pytest.raises(
            ConfigError, match=r"'any' has no preset 'papper'\. Did you mean 'paper'\? Presets: paper\."
        ):
            put_together("any", PRESETS, file=file)

    def test_mpp_is_that_of_pictures_that_do_not_say_unless_they_have_one(self):
        made = put_together("any", {}, options={"mpp": 0.5, "he_mpp": 0.3})
        assert (made.mpp, made.ihc_mpp, made.he_mpp) == (0.5, 0.5, 0.3)
        assert put_together("any", {}).ihc_mpp is None

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("batchsize=2", r"unknown key 'batchsize'\. Did you mean 'batch_size'\?"),
            ("watch.evry=2", r"unknown key 'evry' in watch\. Did you mean 'every'\?"),
            ("batch_size=0", r"batch_size = 0: .*greater than or equal to 1"),
            ("batch_size", r"--set batch_size: expected KEY=VALUE"),
            ("resize_px=200", r"resize_px = 200 must be at least patch_px, which is 256"),
            ("mpp=300", r"mpp = 300"),
            ("device=gpu", r"device = 'gpu'"),
        ],
    )
    def test_a_mistake_is_named_with_the_nearest_key(self, setting, message):
        with pytest.raises(ConfigError, match=message):
            put_together("any", {}, settings=[setting])

    def test_a_mistake_in_a_file_names_the_file(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text("epoch = 3\n")
        with pytest.raises(ConfigError, match=r"mine\.toml: unknown key 'epoch'\. Did you mean 'epochs'\?"):
            put_together("any", {}, file=file)
        file.write_text('plugin = "other"\n')
        with pytest.raises(ConfigError, match=r"is a training of 'other'; 'any' was asked for"):
            put_together("any", {}, file=file)

    def test_ranks_of_one_machine_share_its_processors(self, monkeypatch):
        monkeypatch.setattr("os.cpu_count", lambda: 12)
        assert TrainConfig(plugin="any").threads == 8
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        assert TrainConfig(plugin="any").threads == 3
        assert TrainConfig(plugin="any", workers=1).threads == 1

    def test_a_training_is_plain_json_and_comes_back_from_it(self, tmp_path):
        made = put_together("any", PRESETS, options={"preset": "paper", "ihc": tmp_path, "datasets": "mine"})
        assert TrainConfig(**json.loads(json.dumps(made.to_dict()))) == made
