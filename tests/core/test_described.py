"""What a segmenter tells of its nuclei rides with their labels into the table, and a classifier may call by it."""

import csv

import numpy as np
import pytest
from scipy import ndimage

import stainbridge
from stainbridge import Described, Image, PositivityClassifier, RunConfig, Segmenter, Wants
from stainbridge.errors import ContractViolation
from stainbridge.stitching import Stitcher
from stainbridge.testing.synthetic import synthetic_ihc
from stainbridge.tiling import Canvas, tiles


class Silent(Segmenter):
    """Connected dark regions."""

    name, api, multiple_of = "telling", 1, 1

    @property
    def wants(self):
        return Wants("ihc", 0.25, multiple_of=self.multiple_of)

    def segment(self, batch):
        return np.stack([ndimage.label(one[..., 0] < 190)[0].astype(np.int32) for one in batch])


class Telling(Silent):
    """Tells the brightest blue of each region, which depends on nothing but its pixels."""

    def __init__(self, told="blue", multiple_of=1, change=lambda values: values):
        super().__init__()
        self.told, self.multiple_of, self.change = told, multiple_of, change

    def describe(self, batch):
        labels = self.segment(batch)
        return Described(labels, self.change([{self.told: blue(*pair)} for pair in zip(batch, labels, strict=True)]))


class Calls(PositivityClassifier):
    """Positive by the blue that was told, or as dark as the image says."""

    name, api = "calls", 1

    def __init__(self, wanted="telling", answer=lambda values: values["blue"] / 255):
        super().__init__()
        self.wanted, self.answer, self.looked = wanted, answer, 0

    @property
    def wants(self):
        return Wants("ihc")

    def derives_from(self, segmenter):
        return segmenter.name == self.wanted

    def derive(self, values):
        return self.answer(values)

    def classify(self, ihc, labels):
        self.looked += 1
        return np.zeros(labels.max())


def blue(pixels, labels):
    return np.asarray(ndimage.maximum(pixels[..., 2], labels, np.arange(1, labels.max() + 1)), np.float64).reshape(-1)


@pytest.fixture(scope="module")
def sample():
    return synthetic_ihc(shape=(500, 700), nuclei=120, seed=4)


def run(sample, segmenter=None, classifier=None, **config):
    return stainbridge.run(
        sample.source, segmenter=segmenter or Telling(), classifier=classifier or Calls(), config=RunConfig(**config)
    )


@pytest.mark.parametrize("tile_px", [96, 128, 4096])
@pytest.mark.parametrize("multiple_of", [1, 64])
def test_each_nucleus_has_what_was_told_of_it(sample, tile_px, multiple_of):
    result = run(sample, Telling(multiple_of=multiple_of), tile_px=tile_px)
    labels = np.asarray(result.labels)
    whole = ~result.nuclei.clipped
    assert len(result.nuclei) > 100
    assert np.array_equal(result.nuclei.features["blue"][whole], blue(sample.source.pixels, labels)[whole])


def test_the_classifier_calls_by_it_and_does_not_look_at_the_image(sample):
    classifier = Calls()
    result = run(sample, classifier=classifier, tile_px=128)
    assert np.array_equal(result.nuclei.p_positive, result.nuclei.features["blue"] / 255)
    assert classifier.looked == 0
    assert result.provenance["segmentation"]["calls"] == "from the segmenter's pass"


def test_calls_that_follow_from_another_segmenter_are_made_on_the_image(sample):
    classifier = Calls(wanted="another")
    result = run(sample, classifier=classifier)
    assert classifier.looked > 0
    assert not result.nuclei.p_positive.any()
    assert "blue" in result.nuclei.features
    assert result.provenance["segmentation"]["calls"] == "from the image"


def test_a_segmenter_that_tells_nothing_is_asked_nothing(sample):
    classifier = Calls()
    result = run(sample, Silent(), classifier)
    assert classifier.looked > 0
    assert set(result.nuclei.features) == {"haematoxylin_od_mean", "dab_od_mean"}


def test_a_picture_without_nuclei_has_the_columns_too():
    glass = Image(np.full((200, 300, 3), 245, np.uint8), mpp=0.25)
    nuclei = stainbridge.run(glass, segmenter=Telling(), classifier=Calls()).nuclei
    assert len(nuclei) == 0
    assert nuclei.features["blue"].shape == (0,)


def test_values_go_with_their_nuclei_where_some_are_lost_in_resampling():
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[8:40, 8:40] = 0

    class Dots(Telling):
        def segment(self, batch):
            labels = np.zeros(batch.shape[:3], np.int32)
            labels[0, 100, 100], labels[0, 201, 201], labels[0, 20:60, 20:60] = 1, 2, 3
            return labels

        def describe(self, batch):
            return Described(self.segment(batch), [{"order": np.array([10.0, 20.0, 30.0])}])

    nuclei = stainbridge.run(Image(pixels, mpp=1.0), segmenter=Dots(), classifier=Calls("no one")).nuclei
    assert nuclei.features["order"].tolist() == [30.0]


def test_files_hold_the_columns(sample, tmp_path):
    result = run(sample)
    with (stainbridge.save(result, tmp_path / "out") / "nuclei.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["blue"]) for row in rows] == result.nuclei.features["blue"].tolist()


@pytest.mark.parametrize(
    ("segmenter", "expected"),
    [
        (Telling(told="p_positive"), "'p_positive' is a column of every table of nuclei"),
        (Telling(told="dab_od_mean"), "'dab_od_mean' is a column of every table"),
        (Telling(told="x0"), "'x0' is a column of every table"),
        (
            Telling(change=lambda all_: [{"blue": one["blue"][1:]} for one in all_]),
            r"must be float64 \(\d+,\), one value",
        ),
        (Telling(change=lambda all_: [{"blue": one["blue"].astype(np.float32)} for one in all_]), "found float32"),
        (Telling(change=lambda all_: [{"blue": one["blue"].tolist()} for one in all_]), "found list"),
        (Telling(change=lambda all_: all_ * 2), "must describe 1 pictures; found 2"),
    ],
)
def test_what_does_not_belong_to_the_labels_is_refused_by_name(sample, segmenter, expected):
    with pytest.raises(ContractViolation, match=f"Segmenter 'telling'.*{expected}"):
        run(sample, segmenter)


class Ahead(Telling):
    """Is given two batches ahead of each result."""

    def __init__(self, lost=0, **options):
        super().__init__(**options)
        self.lost, self.taken = lost, []

    def stream(self, batches):
        waiting = []
        for number, batch in enumerate(batches):
            waiting.append(self.describe(batch))
            if number >= 2:
                self.taken.append(number)
                yield waiting.pop(0)
        yield from waiting[max(0, self.lost) :]
        yield from waiting[:1] * max(0, -self.lost)


@pytest.mark.parametrize("multiple_of", [1, 64])
def test_a_segmenter_may_take_batches_ahead_of_its_results(sample, multiple_of):
    plain = run(sample, Telling(multiple_of=multiple_of), tile_px=128)
    ahead = Ahead(multiple_of=multiple_of)
    streamed = run(sample, ahead, tile_px=128)
    assert len(ahead.taken) > 5
    assert np.array_equal(np.asarray(streamed.labels), np.asarray(plain.labels))
    assert np.array_equal(streamed.nuclei.p_positive, plain.nuclei.p_positive)


@pytest.mark.parametrize(("lost", "expected"), [(1, "gave 1 results less than"), (-1, "gave more results than")])
def test_results_that_are_not_one_per_batch_are_refused(sample, lost, expected):
    with pytest.raises(ContractViolation, match=f"Segmenter 'telling' {expected} there were batches"):
        run(sample, Ahead(lost), tile_px=128)


@pytest.mark.parametrize("answer", [lambda v: v["blue"], lambda v: v["blue"][1:] / 255, lambda v: v["blue"] * np.nan])
def test_derived_calls_are_checked_like_others(sample, answer):
    with pytest.raises(ContractViolation, match="Classifier 'calls' must return one probability"):
        run(sample, classifier=Calls(answer=answer))


def test_names_that_change_from_tile_to_tile_are_refused(sample):
    counter = iter(range(1000))
    fickle = Telling(change=lambda all_: [{f"blue{next(counter)}": one["blue"]} for one in all_])
    with pytest.raises(ContractViolation, match="Segmenter 'telling' told 'blue1' of a tile and 'blue0' of the first"):
        run(sample, fickle, Calls("no one"), tile_px=128)


def test_joined_pieces_and_disowned_objects_keep_a_value():
    left, right = tiles((64, 128), 64, 8)
    streak = np.zeros((64, left.outer.width), np.int32)
    streak[10:14, 50:80], streak[30:34, 5:15] = 1, 2
    stitcher = Stitcher(Canvas((64, 128), np.int32))
    stitcher.add(streak, left, {"v": np.array([7.0, 8.0])})
    stitcher.add(np.zeros((64, right.outer.width), np.int32), right, {"v": np.zeros(0)})
    stitcher.finish()
    assert stitcher.values()["v"].tolist() == [8.0, 7.0]
    long = np.zeros((64, 400), np.int32)
    long[30:34, 10:390] = 1
    stitcher = Stitcher(Canvas((64, 400), np.int32))
    for number, tile in enumerate(tiles((64, 400), 64, 16)):
        stitcher.add(long[tile.outer.slices], tile, {"v": np.array([float(number)])})
    stitcher.finish()
    assert stitcher.values()["v"].tolist() == [0.0]
