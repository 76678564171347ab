"""One path for all sizes: tiles, scales and batches do not change the nuclei; a plugin that breaks its contract is named."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import regionprops_table

import stainbridge
from stainbridge import Image, PositivityClassifier, RunConfig, Segmenter, Translator, Wants, tiling
from stainbridge.errors import (
    ConfigError,
    ContractViolation,
    DeviceUnavailable,
    MissingExtra,
    ScaleUnknown,
    UnknownPlugin,
    UnreadablePicture,
)
from stainbridge.testing.synthetic import synthetic_ihc


class Threshold(Segmenter):
    """Connected dark regions: depends on nothing but the pixels of each object."""

    name, api = "threshold", 1

    def __init__(self, *, mpp=0.25, stain="he", tile=None, halo=0, multiple_of=1, batch_size=1):
        super().__init__()
        self.wants_, self.batch_size, self.shapes = Wants(stain, mpp, tile, halo, multiple_of), batch_size, []

    @property
    def wants(self):
        return self.wants_

    def segment(self, batch):
        self.shapes.append(batch.shape)
        return np.stack([ndimage.label(one[..., 0] < 190)[0].astype(np.int32) for one in batch])


class Answer(Segmenter):
    """Returns whatever it was made with."""

    name, api = "answer", 1

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    @property
    def wants(self):
        return Wants("he")

    def segment(self, batch):
        return self.answer(batch)


class Brown(PositivityClassifier):
    """Positive where red exceeds blue."""

    name, api = "brown", 1

    @property
    def wants(self):
        return Wants("ihc")

    def classify(self, ihc, labels):
        ids = np.arange(1, labels.max() + 1)
        red, blue = (ndimage.mean(ihc[..., channel].astype(float), labels, ids) for channel in (0, 2))
        return (np.asarray(red) > np.asarray(blue)).astype(float)


class Shade(Translator):
    """Subtracts its calibration, and remembers what it was shown."""

    name, api = "shade", 1

    def __init__(self, wants=None, shift=0, log=None):
        super().__init__()
        self.wants_, self.shift, self.log = wants or Wants("ihc"), shift, [] if log is None else log

    @property
    def wants(self):
        return self.wants_

    def calibrate(self, sample):
        self.log.append(sample.shape)
        return Shade(self.wants_, 5, self.log)

    def translate(self, batch):
        return np.clip(batch.astype(int) - self.shift, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def sample():
    return synthetic_ihc(shape=(700, 900), nuclei=230, seed=4)


@pytest.fixture(scope="module")
def whole(sample):
    return stainbridge.run(sample.source, "identity", Threshold(), Brown(), config=RunConfig(tile_px=4096))


def run(sample, segmenter, translator="identity", **config):
    return stainbridge.run(sample.source, translator, segmenter, Brown(), config=RunConfig(**config))


@pytest.mark.parametrize("tile_px", [128, 256, 512])
def test_tiles_give_the_nuclei_of_the_whole(sample, whole, tile_px):
    tiled = run(sample, Threshold(), tile_px=tile_px)
    assert len(tiled.nuclei) == len(whole.nuclei) > 100
    assert np.array_equal(np.asarray(tiled.labels) > 0, np.asarray(whole.labels) > 0)
    # The numbering follows the tiles; the rows are the same.
    rows = [
        sorted(zip(r.nuclei.y, r.nuclei.x, r.nuclei.area_um2, r.nuclei.positive, strict=True)) for r in (tiled, whole)
    ]
    assert np.allclose(*rows, rtol=1e-12)
    assert not tiled.nuclei.clipped.any()


def test_a_canvas_on_disk_gives_the_same_result(sample, whole, monkeypatch):
    monkeypatch.setattr(tiling, "IN_MEMORY_PX", 1000)
    again = run(sample, Threshold(), tile_px=4096)
    assert np.array_equal(np.asarray(again.labels), np.asarray(whole.labels))
    assert again.scores == whole.scores


def test_the_table_describes_the_labels(sample, whole):
    props = regionprops_table(np.asarray(whole.labels), properties=("label", "area", "centroid", "bbox"))
    assert np.array_equal(whole.nuclei.label, props["label"])
    assert np.allclose(whole.nuclei.area_um2, props["area"] * 0.25**2)
    assert np.allclose(whole.nuclei.y, props["centroid-0"])
    assert np.array_equal(whole.nuclei.box, np.stack([props[f"bbox-{i}"] for i in range(4)], axis=1))


def test_brown_nuclei_are_positive_and_blue_ones_negative(sample, whole):
    truth = sample.truth.array[np.round(whole.nuclei.y).astype(int), np.round(whole.nuclei.x).astype(int)]
    known = truth > 0
    assert (whole.nuclei.positive[known] == sample.positive[truth[known] - 1]).mean() > 0.95
    assert whole.nuclei.features["dab_od_mean"][whole.nuclei.positive].min() > 0.1


@pytest.mark.parametrize("mpp", [0.5, 0.2])
def test_labels_come_back_to_the_picture_from_another_scale(sample, whole, mpp):
    other = run(sample, Threshold(mpp=mpp))
    assert other.labels.shape == sample.source.shape
    overlap = (np.asarray(other.labels) > 0) & (np.asarray(whole.labels) > 0)
    union = (np.asarray(other.labels) > 0) | (np.asarray(whole.labels) > 0)
    assert overlap.sum() / union.sum() > 0.9


@pytest.mark.parametrize("options", [{"tile": 256, "halo": 48}, {"multiple_of": 32}, {"batch_size": 4}])
def test_what_a_plugin_wants_changes_what_it_sees_and_not_the_nuclei(sample, whole, options):
    segmenter = Threshold(**options)
    found = run(sample, segmenter, tile_px=200)
    assert len(found.nuclei) == len(whole.nuclei)
    assert np.array_equal(np.asarray(found.labels) > 0, np.asarray(whole.labels) > 0)
    for n, height, width, _ in segmenter.shapes:
        assert n <= options.get("batch_size", 1)
        assert (height, width) == (256, 256) or "tile" not in options
        assert height % options.get("multiple_of", 1) == width % options.get("multiple_of", 1) == 0
    assert max(n for n, *_ in segmenter.shapes) == options.get("batch_size", 1)


def test_a_segmenter_that_wants_ihc_skips_the_translation(sample, whole):
    result = run(sample, Threshold(stain="ihc"), "deconvolution")
    assert result.he is None
    assert result.provenance["plugins"]["translator"] is None
    assert result.provenance["config"]["translator"] is None
    assert len(result.nuclei) == len(whole.nuclei)


def test_a_translator_is_fitted_once_to_the_whole_picture(sample):
    shade = Shade()
    result = run(sample, Threshold(), shade, tile_px=128)
    assert shade.log == [(1, 700, 900, 3)]
    he = result.he.read(0, 0, 700, 900)
    assert np.array_equal(he, np.clip(sample.source.pixels.astype(int) - 5, 0, 255))


def test_a_translator_with_tiles_of_its_own_gives_one_picture(sample):
    plain = run(sample, Threshold(), Shade(), tile_px=4096)
    tiled = run(sample, Threshold(), Shade(Wants("ihc", None, 96, 16)), tile_px=150)
    assert np.array_equal(tiled.he.read(0, 0, 700, 900), plain.he.read(0, 0, 700, 900))


def test_nuclei_smaller_than_a_pixel_are_counted_as_lost():
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[8:40, 8:40] = 0

    def dots(batch):
        labels = np.zeros(batch.shape[:3], np.int32)
        labels[0, 100, 100], labels[0, 201, 201] = 1, 2
        labels[0, 20:60, 20:60] = 3
        return labels

    class Fine(Answer):
        wants = Wants("he", 0.25)

    result = stainbridge.run(Image(pixels, mpp=1.0), "identity", Fine(dots), Brown())
    assert result.provenance["segmentation"]["lost_in_resampling"] == 2
    assert result.nuclei.label.tolist() == [1]
    assert np.asarray(result.labels).max() == 1


def test_the_same_run_gives_the_same_result(sample):
    first, second = (run(sample, Threshold(), tile_px=256) for _ in range(2))
    assert np.array_equal(np.asarray(first.labels), np.asarray(second.labels))
    assert first.scores == second.scores
    assert first.provenance == second.provenance


def test_a_picture_without_a_pixel_size_is_an_error_that_names_mpp(sample):
    with pytest.raises(ScaleUnknown, match=r"'image' has no pixel size; segmenter 'threshold'.*\nPass --mpp 0.25"):
        stainbridge.run(sample.source.pixels, "identity", Threshold(), Brown())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda b: np.zeros((1, 5, 5), np.int32),
            r"'answer' must return int32 \(1, 700, 900\); found int32 \(1, 5, 5\)",
        ),
        (lambda b: None, "found NoneType"),
        (lambda b: np.zeros(b.shape[:3], np.int64), "must be an int32 array.*found int64"),
        (lambda b: np.full(b.shape[:3], -1, np.int32), "must not be negative; found -1"),
        (lambda b: np.full(b.shape[:3], 2, np.int32), "id 1 of 2 is missing"),
        (lambda b: np.full(b.shape[:3], 2**31 - 1, np.int32), "without gaps; found id 2147483647"),
    ],
)
def test_a_segmenter_that_breaks_its_contract_is_named(sample, answer, message):
    with pytest.raises(ContractViolation, match=message):
        run(sample, Answer(answer))


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (lambda n: np.zeros(n + 1), "one probability in .0, 1. for each of"),
        (lambda n: np.full(n, 1.5), "other values, such as 1.5"),
        (lambda n: np.full(n, np.nan), "such as nan"),
        (lambda n: np.zeros(n, int), "found int64"),
    ],
)
def test_a_classifier_that_breaks_its_contract_is_named(sample, p, message):
    class Wrong(Brown):
        name = "wrong"

        def classify(self, ihc, labels):
            return p(int(labels.max()))

    with pytest.raises(ContractViolation, match="'wrong' must return " + message if "one" in message else message):
        stainbridge.run(sample.source, "identity", Threshold(), Wrong())


def test_a_translator_that_breaks_its_contract_is_named(sample):
    class Wrong(Shade):
        name = "wrong"

        def translate(self, batch):
            return batch.astype(np.float32)

        def calibrate(self, sample):
            return self

    with pytest.raises(ContractViolation, match=r"'wrong' must return uint8 .*found float32"):
        run(sample, Threshold(), Wrong())


def test_blank_glass_has_no_nuclei_and_scores_of_nothing():
    blank = Image(np.full((300, 200, 3), 245, np.uint8), mpp=0.25)
    result = stainbridge.run(blank, "identity", "baseline")
    assert len(result.nuclei) == 0
    assert result.scores["counts"]["total"] == 0
    assert result.scores["percent_positive"] is None


def test_a_single_pixel_is_a_picture():
    assert len(stainbridge.run(Image(np.zeros((1, 1, 3), np.uint8), mpp=0.25), "identity", "baseline").nuclei) <= 1


def test_a_source_must_be_one():
    with pytest.raises(ContractViolation, match=r"A source is a path, .* found dict"):
        stainbridge.run({}, mpp=0.25)


def test_an_array_that_is_not_rgb_is_refused():
    with pytest.raises(ValueError, match=r"must be uint8 .height, width, 3.*found uint16"):
        stainbridge.run(np.zeros((5, 5, 3), np.uint16), mpp=0.25)


def test_unknown_names_and_keys_say_the_nearest(sample, tmp_path):
    with pytest.raises(UnknownPlugin, match=r"Did you mean 'deconvolution'"):
        stainbridge.run(sample.source, "deconvolutoin", "baseline")
    with pytest.raises(UnknownPlugin, match=r"Did you mean 'deconvolution'"):
        stainbridge.run(sample.source, "deconvolutoin", "baseline/ihc")
    with pytest.raises(ConfigError, match=r"Did you mean 'hue_width'"):
        stainbridge.run(sample.source, "identity", "baseline", classifier={"name": "hsi", "hue_widht": 0.1})
    with pytest.raises(UnreadablePicture, match=r"nowhere.png"):
        stainbridge.run(tmp_path / "nowhere.png", "identity", "baseline", mpp=0.25)


def test_mpp_that_is_passed_wins_over_what_a_source_says(sample):
    class Slide:
        name, shape, mpp = "slide", sample.source.shape, 0.5

        def read(self, *window):
            return sample.source.read(*window)

    result = stainbridge.run(Slide(), "identity", Threshold(), Brown(), mpp=0.25)
    assert result.source.mpp == 0.25
    assert result.scores["area_mm2"] == pytest.approx(700 * 900 * 0.25**2 / 1e6)
    assert result.provenance["input"]["mpp"] == 0.25


def test_an_mpp_in_nanometres_is_refused(sample):
    with pytest.raises(ConfigError, match=r"mpp = 250.*between 0.05 and 20.0; a 40x scan has about 0.25"):
        stainbridge.run(sample.source, "identity", Threshold(), Brown(), mpp=250)


def test_a_classifier_is_fitted_to_the_picture(sample):
    class Fitted(Brown):
        sample_shape = None

        def calibrate(self, sample):
            fitted = Fitted()
            fitted.sample_shape = sample.shape
            return fitted

        def classify(self, ihc, labels):
            assert self.sample_shape == (1, 700, 900, 3)
            return super().classify(ihc, labels)

    assert len(stainbridge.run(sample.source, "identity", Threshold(), Fitted()).nuclei) > 100


@pytest.mark.parametrize(
    ("kind", "wants", "message"),
    [
        ("translator", Wants("he"), "The translator 'shade' wants 'he'; a translator is given 'ihc'"),
        ("classifier", Wants("he"), "The classifier 'brown' wants 'he'"),
        ("classifier", Wants("ihc", tile=64), "wants tile 64 and multiples of 1; .* it must take any size"),
    ],
)
def test_wants_that_are_not_honoured_are_refused(sample, kind, wants, message):
    class Odd(Brown):
        pass

    Odd.wants = wants
    plugins = {"translator": Shade(), "classifier": Brown()} | {kind: Shade(wants) if kind == "translator" else Odd()}
    with pytest.raises(ContractViolation, match=message):
        stainbridge.run(sample.source, segmenter=Threshold(), **plugins)


def test_a_device_that_is_not_there_is_an_error(sample):
    with pytest.raises((DeviceUnavailable, MissingExtra), match="cuda"):
        run(sample, Threshold(), device="cuda:7")


def test_the_threshold_of_the_run_wins_over_the_classifiers(sample):
    loose = run(sample, Threshold(), threshold=0.0)
    assert loose.nuclei.positive.all()
    assert loose.provenance["segmentation"]["threshold"] == 0.0


def test_provenance_names_input_plugins_versions_and_configuration(whole):
    record = whole.provenance
    assert len(record["input"]["sha256_of_pixels"]) == 64
    assert record["plugins"]["segmenter"]["name"] == record["config"]["segmenter"]["name"] == "threshold"
    assert record["software"]["stainbridge"] == stainbridge.__version__
    assert record["software"]["libraries"]["numpy"] == np.__version__
    assert record["config"]["seed"] == 0


def test_the_classifiers_cuts_grade_the_nuclei_unless_the_run_has_its_own(sample):
    def grades(classifier, **config):
        result = stainbridge.run(sample.source, "identity", Threshold(), classifier, config=RunConfig(**config))
        return (
            result.nuclei.grade,
            result.nuclei.features["dab_od_mean"],
            result.provenance["segmentation"]["grade_cuts"],
        )

    grade, od, cuts = grades({"name": "dab", "thresholds_od": (0.1, 0.3, 0.5)})
    assert cuts == [0.1, 0.3, 0.5]
    assert np.array_equal(grade, np.digitize(od, cuts))
    grade, od, cuts = grades({"name": "dab", "thresholds_od": (0.1, 0.3, 0.5)}, grade_cuts=(0.2, 0.5, 0.9))
    assert cuts == [0.2, 0.5, 0.9]
    assert np.array_equal(grade, np.digitize(od, cuts))
