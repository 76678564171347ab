"""Data sets by layout: hand-made files with known truth, every mistake with its sentence, and the real pictures."""

import json
import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from stainbridge.datasets import DatasetTable, Item, open_dataset
from stainbridge.datasets.checking import check_dataset
from stainbridge.errors import (
    ConfigError,
    DataCorrupt,
    DataUnavailable,
    ScaleUnknown,
    UnknownDataset,
    UnreadablePicture,
    UnusableTruth,
)
from stainbridge.records import Sample, Source

CARDS = """
[datasets.strips]
summary = "Two strips"
layout = "deepliif"
stain = "ihc"
mpp = 0.25
licence = "CC-BY-4.0"
commercial = true
aliases = ["stripes"]
reading = "interior"
pictures = { test = 2, train = 5 }
archives = [{ split = "test", folder = "Testing" }, { split = "train" }]

[datasets.unscaled]
summary = "Pictures of unknown scale"
layout = "pictures"
stain = "ihc"
licence = "not stated"
commercial = false
note = "Probably 0.25."
"""


@pytest.fixture
def cards(tmp_path):
    path = tmp_path / "cards.toml"
    path.write_text(CARDS)
    return [path]


def picture(path, height=6, width=8, dpi=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), 200, np.uint8)
    Pillow.fromarray(pixels).save(path, **({"dpi": dpi} if dpi else {}))
    return path


def labels(path, height=6, width=8, dtype=np.uint16):
    array = np.zeros((height, width), dtype)
    array[1:3, 1:3], array[4:6, 5:8] = 3, 8
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Pillow.fromarray(array).save(path)
    return array


def strip(path, side=8):
    tiles = np.zeros((side, 6 * side, 3), np.uint8)
    tiles[:, :side] = 180
    seg = tiles[:, 5 * side :]
    seg[1:7, 1:7] = (255, 0, 0)
    seg[1:7, 0] = (0, 255, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(tiles).save(path)


def own(path, **table):
    return {"name": "own", "layout": "folder", "path": path, "mpp": 0.5, "stain": "he", **table}


class TestFolders:
    def test_pictures_and_label_images_side_by_side(self, tmp_path):
        for name in ("b", "a"):
            picture(tmp_path / f"{name}.png")
            labels(tmp_path / f"{name}_labels.png")
        dataset = open_dataset(own(tmp_path))
        assert [item.name for item in dataset.items] == ["a", "b"]
        assert (len(dataset), dataset.has_truth, dataset.split, dataset.reading) == (2, True, None, None)
        sample = dataset.items[0].sample()
        assert isinstance(sample, Sample)
        assert sample.truth.array.max() == 2
        assert (sample.truth.mpp, sample.source.mpp, sample.positive, sample.source.name) == (0.5, 0.5, None, "a")

    @pytest.mark.parametrize(("truth", "suffix"), [("labels", ".npy"), ("masks", ".tif"), ("elsewhere", ".png")])
    def test_truth_in_a_folder_of_its_own(self, tmp_path, truth, suffix):
        picture(tmp_path / "images" / "a.png")
        (tmp_path / truth).mkdir()
        labels(tmp_path / truth / f"a{suffix}")
        table = own(tmp_path / "images", truth=tmp_path / truth) if truth == "elsewhere" else own(tmp_path)
        assert open_dataset(table).items[0].sample().truth.array.max() == 2

    def test_classes_come_from_types_when_some_are_called_positive(self, tmp_path):
        picture(tmp_path / "a.png")
        array = labels(tmp_path / "a_labels.png")
        Pillow.fromarray((array == 8).astype(np.uint8) + 1).save(tmp_path / "a_types.png")
        assert open_dataset(own(tmp_path)).items[0].sample().positive is None
        assert open_dataset(own(tmp_path, positive=[2])).items[0].sample().positive.tolist() == [False, True]

    def test_outlines_as_geojson_with_their_classes(self, tmp_path):
        picture(tmp_path / "a.png")
        features = [
            {
                "geometry": {"type": "Polygon", "coordinates": [[[x, 0], [x + 2, 0], [x + 2, 2], [x, 2]]]},
                "properties": {"classification": {"name": name}},
            }
            for x, name in ((0, "Negative"), (4, "Positive"))
        ]
        (tmp_path / "a.geojson").write_text(json.dumps({"features": features}))
        sample = open_dataset(own(tmp_path)).items[0].sample()
        assert np.bincount(sample.truth.array.ravel()).tolist() == [40, 4, 4]
        assert sample.positive.tolist() == [False, True]

    def test_no_nucleus_at_all_is_truth_too(self, tmp_path):
        picture(tmp_path / "a.png")
        np.save(tmp_path / "a_labels.npy", np.zeros((6, 8), np.int32))
        sample = open_dataset(own(tmp_path)).items[0].sample()
        assert sample.truth.array.max() == 0

    def test_items_go_to_another_process_as_a_few_bytes(self, tmp_path):
        picture(tmp_path / "a.png")
        labels(tmp_path / "a_labels.png")
        (item,) = open_dataset(own(tmp_path)).items
        sent = pickle.dumps(item)
        assert len(sent) < 1000
        assert pickle.loads(sent) == item
        assert isinstance(item, Item)
        assert isinstance(item.source(), Source)

    def test_missing_and_extra_truth_are_listed_five_at_most(self, tmp_path):
        for index in range(7):
            picture(tmp_path / f"p{index}.png")
        labels(tmp_path / "other_labels.png")
        with pytest.raises(DataCorrupt) as caught:
            open_dataset(own(tmp_path))
        text = str(caught.value)
        assert "7 pictures have no truth: p0.png, p1.png, p2.png, p3.png, p4.png and 2 more" in text
        assert "1 truth files have no picture: other_labels.png" in text

    def test_patterns_choose_pictures_and_forgive_the_rest(self, tmp_path):
        for name in ("a", "b"):
            picture(tmp_path / f"{name}.png")
        labels(tmp_path / "a_labels.png")
        assert [item.name for item in open_dataset(own(tmp_path, pictures=["a*"])).items] == ["a"]
        with pytest.raises(DataUnavailable, match=r"matches pictures = \['z\*'\]"):
            open_dataset(own(tmp_path, pictures=["z*"]))

    def test_a_folder_without_any_truth_says_what_was_expected(self, tmp_path):
        picture(tmp_path / "a.png")
        with pytest.raises(DataUnavailable, match=r"(?s)holds no truth: expected NAME_labels.png.*layout = 'pictures'"):
            open_dataset(own(tmp_path))

    def test_two_truths_of_one_picture_are_both_named(self, tmp_path):
        picture(tmp_path / "a.png")
        labels(tmp_path / "a_labels.png")
        labels(tmp_path / "a_labels.npy")
        with pytest.raises(DataCorrupt, match=r"'a' has two truths: .*a_labels.npy and .*a_labels.png"):
            open_dataset(own(tmp_path))

    def test_two_pictures_of_one_name_are_both_named(self, tmp_path):
        picture(tmp_path / "a.png")
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 8, 3), np.uint8))
        labels(tmp_path / "a_labels.png")
        with pytest.raises(DataCorrupt, match=r"named 'a': .*a.png and .*a.tif"):
            open_dataset(own(tmp_path))

    def test_truth_of_another_size_names_both_sizes(self, tmp_path):
        picture(tmp_path / "a.png")
        labels(tmp_path / "a_labels.png", 7, 9)
        (item,) = open_dataset(own(tmp_path)).items
        with pytest.raises(UnusableTruth, match=r"'a_labels.png' is 9 x 7 px and its picture 'a.png' 8 x 6 px"):
            item.sample()

    def test_missing_types_are_named_where_classes_are_wanted(self, tmp_path):
        picture(tmp_path / "a.png")
        labels(tmp_path / "a_labels.png")
        with pytest.raises(DataCorrupt, match="1 pictures have no NAME_types file: a"):
            open_dataset(own(tmp_path, positive=[1]))
        with pytest.raises(ConfigError, match="whole numbers, not \\['tumour'\\]"):
            open_dataset(own(tmp_path, positive=["tumour"]))

    def test_an_empty_folder_and_a_missing_one_are_told_apart(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataUnavailable, match="empty' holds no picture"):
            open_dataset(own(tmp_path / "empty"))
        with pytest.raises(DataUnavailable, match="none' of the data set 'own' does not exist"):
            open_dataset(own(tmp_path / "none"))
        picture(tmp_path / "a.png")
        with pytest.raises(DataUnavailable, match=r"folder of the truth, .*none', does not exist"):
            open_dataset(own(tmp_path, truth=tmp_path / "none"))


class TestScale:
    def test_a_picture_that_says_its_scale_needs_none_in_the_table(self, tmp_path):
        picture(tmp_path / "a.png", dpi=(50800, 50800))
        labels(tmp_path / "a_labels.png")
        assert open_dataset(own(tmp_path, mpp=None)).items[0].sample().truth.mpp == pytest.approx(0.5, rel=1e-4)

    def test_a_picture_without_scale_stops_before_anything_is_run(self, tmp_path, cards):
        picture(tmp_path / "p" / "a.png")
        labels(tmp_path / "p" / "a_labels.png")
        with pytest.raises(ScaleUnknown, match=r"(?s)'a.png' has no pixel size.*Set mpp .* such as mpp = 0.25"):
            open_dataset(own(tmp_path / "p", mpp=None))
        with pytest.raises(ScaleUnknown, match=r"Probably 0.25."):
            open_dataset({"name": "unscaled", "path": tmp_path / "p"}, registries=cards)

    @pytest.mark.parametrize("layout", ["deepliif", "pannuke"])
    def test_the_table_has_to_say_it_for_every_layout(self, tmp_path, layout):
        strip(tmp_path / "a.png")
        fold(tmp_path)
        with pytest.raises(ScaleUnknown, match="has no pixel size"):
            open_dataset(own(tmp_path, layout=layout, mpp=None))

    def test_a_damaged_picture_is_left_for_its_turn(self, tmp_path):
        picture(tmp_path / "a.png", dpi=(50800, 50800))
        (tmp_path / "b.png").write_bytes(b"nothing")
        for name in ("a", "b"):
            labels(tmp_path / f"{name}_labels.png")
        dataset = open_dataset(own(tmp_path, mpp=None))
        with pytest.raises(UnreadablePicture):
            dataset.items[1].sample()
        found = check_dataset(dataset)
        assert (found.pictures, found.nuclei, len(found.faults)) == (2, 2, 1)
        assert found.faults[0].startswith("b: ")


class TestDeepliif:
    def test_strips_are_read_by_the_cards_reading_or_the_callers(self, tmp_path, cards):
        strip(tmp_path / "t" / "x.png")
        strip(tmp_path / "t" / "y.png")
        table = {"name": "strips", "path": tmp_path / "t"}
        dataset = open_dataset(table, registries=cards)
        assert (dataset.reading, dataset.split, dataset.remarks) == ("interior", "test", ())
        sample = dataset.items[0].sample()
        assert np.count_nonzero(sample.truth.array) == 36
        assert sample.positive.tolist() == [True]
        assert (sample.source.name, sample.source.shape) == ("x", (8, 8))
        whole = open_dataset(table, registries=cards, reading="interior+outline").items[0].sample()
        assert np.count_nonzero(whole.truth.array) == 42

    def test_another_number_of_pictures_than_published_is_remarked(self, tmp_path, cards):
        strip(tmp_path / "t" / "x.png")
        dataset = open_dataset({"name": "strips", "path": tmp_path / "t"}, split="train", registries=cards)
        assert dataset.remarks == ("1 pictures where 5 are published",)

    def test_a_picture_that_is_neither_strip_nor_pair_is_named_with_its_size(self, tmp_path, cards):
        strip(tmp_path / "t" / "x.png")
        picture(tmp_path / "t" / "y.png")
        picture(tmp_path / "t" / "z_IHC.png")
        picture(tmp_path / "t" / "w_Seg.png")
        with pytest.raises(DataCorrupt) as caught:
            open_dataset({"name": "strips", "path": tmp_path / "t"}, registries=cards)
        text = str(caught.value)
        assert "neither strips of six square tiles nor pairs: y.png (8 x 6 px)" in text
        assert "lack NAME_Seg.png: z_IHC.png" in text
        assert "lack NAME_IHC.png: w_Seg.png" in text

    def test_a_strip_and_a_pair_of_one_name_are_both_named(self, tmp_path, cards):
        strip(tmp_path / "t" / "x.png")
        for end in ("IHC", "Seg"):
            picture(tmp_path / "t" / f"x_{end}.png")
        with pytest.raises(DataCorrupt, match=r"named 'x': .*x.png and .*x_IHC.png|named 'x': .*x_IHC.png and .*x.png"):
            open_dataset({"name": "strips", "path": tmp_path / "t"}, registries=cards)

    def test_a_wrong_reading_names_the_nearest(self, tmp_path, cards):
        strip(tmp_path / "t" / "x.png")
        with pytest.raises(ConfigError, match=r"Unknown reading 'outline'.*Did you mean 'interior\+outline'"):
            open_dataset({"name": "strips", "path": tmp_path / "t"}, reading="outline", registries=cards)


class TestOtherLayouts:
    @pytest.mark.parametrize("flat", [True, False])
    def test_monuseg_in_two_folders_or_one(self, tmp_path, flat):
        pictures, notes = (tmp_path, tmp_path) if flat else (tmp_path / "Tissue Images", tmp_path / "Annotations")
        for folder in {pictures, notes}:
            folder.mkdir(exist_ok=True)
        tifffile.imwrite(pictures / "TCGA-1.tif", np.zeros((6, 8, 3), np.uint8))
        corners = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((1.0, 1.0), (4, 1), (4, 3), (1, 3)))
        (notes / "TCGA-1.xml").write_text(f"<Annotations><Region><Vertices>{corners}</Vertices></Region></Annotations>")
        dataset = open_dataset(own(tmp_path, layout="monuseg"))
        sample = dataset.items[0].sample()
        assert np.argwhere(sample.truth.array).tolist() == [[y, x] for y in (1, 2) for x in (1, 2, 3)]
        (notes / "TCGA-1.xml").unlink()
        with pytest.raises(DataCorrupt, match=r"1 pictures have no truth: TCGA-1.tif"):
            open_dataset(own(tmp_path, layout="monuseg"))

    def test_pannuke_reads_one_row_and_the_tissue_is_the_subset(self, tmp_path):
        fold(tmp_path)
        dataset = open_dataset(own(tmp_path, layout="pannuke"))
        assert [(item.name, item.subset) for item in dataset.items] == [
            ("fold1_00000", "Colon"),
            ("fold1_00001", "Skin"),
        ]
        sample = dataset.items[1].sample()
        assert (sample.truth.array.max(), sample.source.name, sample.positive) == (2, "fold1_00001", None)
        assert sample.source.read(0, 0, 1, 1).tolist() == [[[7, 7, 7]]]
        assert len(pickle.dumps(dataset.items[0])) < 1000

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"masks": np.zeros((2, 4, 4, 5))}, r"found \(2, 4, 4, 3\), \(2, 4, 4, 5\) and \(2,\)"),
            ({"types": np.array(["a"])}, r"and \(1,\)"),
        ],
    )
    def test_arrays_that_do_not_fit_are_refused_with_their_shapes(self, tmp_path, change, words):
        fold(tmp_path, **change)
        with pytest.raises(DataCorrupt, match=words):
            open_dataset(own(tmp_path, layout="pannuke"))

    def test_several_folds_below_one_folder_are_refused(self, tmp_path):
        fold(tmp_path / "one")
        fold(tmp_path / "two")
        with pytest.raises(DataUnavailable, match=r"images.npy is there 2 times: name the folder of one fold"):
            open_dataset(own(tmp_path, layout="pannuke"))

    def test_values_that_are_no_ids_or_colours_are_an_error_of_their_picture(self, tmp_path):
        fold(tmp_path, images=np.full((2, 4, 4, 3), 0.5))
        item = open_dataset(own(tmp_path, layout="pannuke")).items[0]
        with pytest.raises(UnreadablePicture, match=r"whole numbers 0..255"):
            item.source()
        fold(tmp_path, masks=np.full((2, 4, 4, 6), 0.5))
        with pytest.raises(UnusableTruth, match=r"masks.npy\[0\]' holds float64 values such as 0.5"):
            item.sample()

    def test_pictures_without_truth_can_be_read_but_not_scored(self, tmp_path):
        picture(tmp_path / "roi.png")
        dataset = open_dataset(own(tmp_path, layout="pictures"))
        assert not dataset.has_truth
        assert dataset.items[0].source().shape == (6, 8)
        with pytest.raises(DataUnavailable, match="'roi' has no truth"):
            dataset.items[0].sample()
        assert check_dataset(dataset).faults == ()


class TestSubsets:
    @pytest.fixture
    def table(self, tmp_path):
        for name in ("a", "b"):
            picture(tmp_path / "p" / f"{name}.png")
        return own(tmp_path / "p", layout="pictures", subsets=tmp_path / "s.csv")

    def test_a_csv_says_which_picture_is_in_which(self, table, tmp_path):
        (tmp_path / "s.csv").write_text("\ufeffpicture, subset\nb,clustered\n\na,regular\n")
        assert [item.subset for item in open_dataset(table).items] == ["regular", "clustered"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("picture,subst\na,x\n", "no column 'subset'. Did you mean 'subst'"),
            ("", "no column 'picture'"),
            ("picture,subset\na,x\nc,y\n", "line 3: no picture is named 'c'"),
            ("picture,subset\na,x\na,y\n", "line 3: 'a' is there twice"),
            ("picture,subset\na,x\n", "names no subset for 1 of 2, such as 'b'"),
            ("picture,subset\na\n", "line 2, has fewer fields"),
            ("picture,subset\na,x,y\n", "line 2, has more fields"),
            ("picture,subset\na,\n", "line 2: 'a' has no subset"),
        ],
    )
    def test_every_mistake_is_named_with_its_line(self, table, tmp_path, text, words):
        (tmp_path / "s.csv").write_text(text)
        with pytest.raises(DataCorrupt, match=words):
            open_dataset(table)


class TestChoices:
    def test_an_unknown_name_gets_the_nearest_and_the_way_to_use_own_pictures(self, cards):
        with pytest.raises(UnknownDataset, match=r"(?s)No data set is named 'strps'. Did you mean 'strips'.*layout = "):
            open_dataset("strps", registries=cards)

    def test_an_unknown_split_gets_the_nearest(self, cards):
        with pytest.raises(UnknownDataset, match=r"strips has no split 'tests'. Did you mean 'test'"):
            open_dataset("strips", split="tests", registries=cards)

    @pytest.mark.parametrize(
        ("table", "words"),
        [
            ({"pth": "x"}, "data set 'own': unknown key 'pth'. Did you mean 'path'"),
            ({"layout": "foldr"}, "layout = 'foldr'"),
            ({"mpp": -1}, "mpp = -1"),
            ({"stain": None}, "data set 'own' lacks the key 'stain'"),
            ({"path": None}, "data set 'own' lacks the key 'path'"),
            ({"reading": "interior"}, "reading = 'interior': the truth of 'own' has one reading only"),
            ({"name": "strips"}, "a card has this name"),
        ],
    )
    def test_every_mistake_in_a_table_is_named(self, tmp_path, cards, table, words):
        picture(tmp_path / "p" / "a.png")
        labels(tmp_path / "p" / "a_labels.png")
        with pytest.raises(ConfigError, match=words):
            open_dataset({**own(tmp_path / "p"), **table}, registries=cards)

    def test_a_table_says_what_the_card_does_not(self, tmp_path, cards):
        picture(tmp_path / "p" / "a.png")
        table = {"name": "unscaled", "path": tmp_path / "p", "mpp": 0.3, "contains": ["lizard"]}
        dataset = open_dataset(table, registries=cards)
        assert (dataset.card.mpp, dataset.card.contains, dataset.items[0].source().mpp) == (0.3, ("lizard",), 0.3)

    def test_a_picture_is_found_below_data_dir_in_each_usual_place(self, tmp_path, cards):
        for number, place in enumerate(("datasets/strips/test", "strips/test", "strips/Testing", "Testing")):
            root = tmp_path / str(number)
            strip(root / place / "x.png")
            dataset = open_dataset("strips", data_dir=root, registries=cards, offline=True)
            assert dataset.folder == root / place

    def test_what_cannot_be_fetched_says_how_to_bring_it(self, tmp_path, cards):
        with pytest.raises(
            DataUnavailable, match=r"(?s)strips/test cannot be fetched: no address is known.*--data-dir"
        ):
            open_dataset("strips", data_dir=tmp_path, registries=cards)
        with pytest.raises(DataUnavailable, match=r"The folder of data, .*none', does not exist"):
            open_dataset("strips", data_dir=tmp_path / "none", registries=cards)

    def test_the_keys_of_a_table_are_documented(self):
        assert all(key in DatasetTable.__doc__ for key in DatasetTable.model_fields)


class TestRealPictures:
    def test_deepliif_strip_and_pairs_hold_the_known_nuclei(self, shared):
        table = own(shared / "data/ihc_deepliif", layout="deepliif", pictures=["*_IHC.png", "Lung1.png"], stain="ihc")
        found = {
            item.name: (int(sample.positive.sum()), int((~sample.positive).sum()))
            for item in open_dataset(table).items
            for sample in [item.sample()]
        }
        assert found == {"22_2": (10, 125), "34_3": (21, 79), "6_2": (22, 24), "Lung1": (11, 50)}

    @pytest.mark.parametrize(("folder", "pictures"), [("he_monuseg", 6), ("he_nucls", 10), ("he_dsb2018", 4)])
    def test_every_label_image_fits_its_picture(self, shared, folder, pictures):
        found = check_dataset(open_dataset(own(shared / "data" / folder)))
        assert (found.pictures, found.faults) == (pictures, ())
        assert found.nuclei > 10 * pictures


def fold(folder, **change):
    images = np.full((2, 4, 4, 3), 7.0)
    masks = np.zeros((2, 4, 4, 6))
    masks[1, 0, 0, 0], masks[1, 2, 2, 3] = 4, 4
    arrays = {"images": images, "masks": masks, "types": np.array(["Colon", "Skin"]), **change}
    for name, array in arrays.items():
        place = folder / ("masks" if name == "masks" else "images") / "fold1"
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{name}.npy", array)
