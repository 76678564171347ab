"""Panoptic quality, AJI, detection, counts, calls and preservation: cases worked by hand, and slow references written here."""

import math
import pickle

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import stainbridge
from stainbridge import Image, Labels, Nuclei, Poolable, Result, Sample
from stainbridge.errors import ContractViolation
from stainbridge.testing import synthetic_ihc
from stainbridge_plugins.metrics import register_metrics
from stainbridge_plugins.metrics.calls import PositivityAgreement
from stainbridge_plugins.metrics.detection import CountError, Detection, centroids
from stainbridge_plugins.metrics.masks import AggregatedJaccard, InstanceMatching, Panoptic, PixelDice
from stainbridge_plugins.metrics.preservation import Preservation

COLUMNS = ("label", "y", "x", "area_um2", "y0", "x0", "y1", "x1", "p_positive", "positive", "grade", "clipped")
MASKS = (PixelDice, InstanceMatching, Panoptic, AggregatedJaccard, Detection, CountError)


def boxes(*corners, size=100):
    """Draw (y0, y1, x0, x1) rectangles with ids 1..n."""
    labels = np.zeros((size, size), np.int32)
    for number, (y0, y1, x0, x1) in enumerate(corners, 1):
        labels[y0:y1, x0:x1] = number
    return labels


def shown(metric, truth, prediction, *, positive=None, called=None, mpp=0.25):
    """Show one picture to a metric; return its values."""
    image = Image(np.full((*truth.shape, 3), 255, np.uint8), mpp)
    n = int(prediction.max(initial=0))
    called = np.zeros(n, bool) if called is None else np.asarray(called)
    none = np.zeros(n)
    columns = dict.fromkeys(("y", "x", "area_um2", "y0", "x0", "y1", "x1", "p_positive", "grade", "clipped"), none)
    nuclei = Nuclei.from_columns(columns | {"label": np.arange(1, n + 1), "positive": called})
    sample = Sample(image, Labels(truth, mpp), None if positive is None else np.asarray(positive))
    return metric.update(Result(image, Labels(prediction, mpp), nuclei, None, {}, {}), sample)


SQUARE, SHIFTED = boxes((10, 20, 10, 20)), boxes((10, 20, 15, 25))
NOTHING = np.zeros((100, 100), np.int32)


class TestPanoptic:
    def test_an_iou_of_exactly_one_half_is_no_match(self):
        # Half of a 10 x 10 square: 50 of 100 pixels.
        values = shown(Panoptic(), SQUARE, boxes((10, 20, 10, 15)))
        assert (values["tp"], values["fp"], values["fn"], values["pq"]) == (0, 1, 1, 0)
        assert shown(InstanceMatching(), SQUARE, boxes((10, 20, 10, 15)))["tp@0.50"] == 1

    def test_one_found_with_iou_080_and_one_missed(self):
        truth = boxes((10, 20, 10, 20), (40, 50, 40, 50))
        values = shown(Panoptic(), truth, boxes((10, 20, 10, 18)))
        assert values["sq"] == pytest.approx(0.8)
        assert values["dq"] == pytest.approx(1 / 1.5)
        assert values["pq"] == pytest.approx(0.8 / 1.5)

    def test_pooled_counts_are_not_the_mean_of_pictures(self):
        metric = Panoptic()
        shown(metric, SQUARE, SQUARE)
        shown(metric, boxes((0, 9, 0, 9), (20, 29, 20, 29), (50, 59, 50, 59)), NOTHING)
        pooled = metric.compute()
        assert pooled["dq"] == pytest.approx(1 / (1 + 1.5))
        assert pooled["dq_mean"] == pytest.approx(0.5)


class TestAggregatedJaccard:
    def test_one_prediction_over_two_nuclei_serves_both_in_aji_and_one_in_aji_plus(self):
        truth, prediction = boxes((0, 10, 0, 10), (0, 10, 10, 20)), boxes((0, 10, 0, 20))
        values = shown(AggregatedJaccard(), truth, prediction)
        # AJI: both take it: (100 + 100) / (200 + 200). AJI+: one does: 100 / (200 + 100).
        assert values["aji"] == pytest.approx(0.5)
        assert values["aji_plus"] == pytest.approx(1 / 3)

    def test_it_equals_a_slow_reference_on_random_labels(self):
        rng = np.random.default_rng(3)
        for _ in range(10):
            truth, prediction = (np.kron(rng.integers(0, 9, (6, 6)), np.ones((4, 4))).astype(np.int32) for _ in "ab")
            truth, prediction = (
                np.unique(one, return_inverse=True)[1].reshape(one.shape).astype(np.int32)
                for one in (truth, prediction)
            )
            values = shown(AggregatedJaccard(), truth, prediction)
            aji, plus = slow_aji(truth, prediction)
            assert values["aji"] == pytest.approx(aji, abs=1e-12)
            assert values["aji_plus"] == pytest.approx(plus, abs=1e-12)


def slow_aji(truth, prediction):
    """Follow METHOD's definitions with full masks."""
    t = [truth == i for i in range(1, truth.max() + 1)]
    p = [prediction == j for j in range(1, prediction.max() + 1)]
    both = np.array([[(a & b).sum() for b in p] for a in t], float)
    either = np.array([[(a | b).sum() for b in p] for a in t], float)
    iou = both / either
    many = [(i, int(iou[i].argmax())) for i in range(len(t)) if iou[i].max() > 0]
    one = [(i, j) for i, j in zip(*linear_sum_assignment(iou, maximize=True), strict=True) if iou[i, j] > 0]
    return tuple(_jaccard(pairs, both, either, t, p) for pairs in (many, one))


def _jaccard(pairs, both, either, t, p):
    left_t, left_p = set(range(len(t))) - {i for i, _ in pairs}, set(range(len(p))) - {j for _, j in pairs}
    every = sum(either[pair] for pair in pairs) + sum(t[i].sum() for i in left_t) + sum(p[j].sum() for j in left_p)
    return sum(both[pair] for pair in pairs) / every


class TestDetection:
    def test_a_square_shifted_by_five_pixels_is_found_at_a_quarter_micrometre(self):
        assert shown(Detection(), SQUARE, SHIFTED)["f1"] == 1
        # 5 px of 1 um are more than 4 um.
        assert shown(Detection(), SQUARE, SHIFTED, mpp=1.0)["f1"] == 0

    def test_greedy_may_find_fewer(self):
        # On a line: truth at 10 and 20, found at 19 and 30; nearest first takes (20, 19) and leaves 10 with 30.
        truth, found = boxes((0, 1, 10, 11), (0, 1, 20, 21)), boxes((0, 1, 19, 20), (0, 1, 30, 31))
        values = shown(Detection(), truth, found, mpp=0.4)
        assert values["tp"] == 2
        assert values["tp_greedy"] == 1

    def test_centroids_skip_gaps_in_the_ids(self):
        labels = np.zeros((6, 6), np.int32)
        labels[0, 0:3], labels[4:6, 5] = 7, 900
        assert centroids(labels).tolist() == [[0, 1], [4.5, 5]]


def test_counts_are_signed_and_relative():
    metric = CountError()
    values = shown(metric, boxes((0, 5, 0, 5), (10, 15, 10, 15)), boxes((0, 5, 0, 5)))
    assert (values["error"], values["error_abs"], values["error_relative"]) == (-1, 1, -0.5)
    shown(metric, SQUARE, boxes((0, 5, 0, 5), (10, 15, 10, 15)))
    assert metric.compute()["error_relative"] == 0
    assert metric.compute()["error_abs_mean"] == 1


class TestPositivity:
    FOUR = boxes(*((20 * k, 20 * k + 10, 0, 10) for k in range(4)))

    def test_kappa_of_three_agreements_in_four(self):
        values = shown(
            PositivityAgreement(),
            self.FOUR,
            self.FOUR,
            positive=np.ones(4) == [1, 1, 0, 0],
            called=[True, False, False, False],
        )
        # Observed 3/4; by chance (2 * 1 + 2 * 3) / 16 = 1/2.
        assert values["accuracy"] == 0.75
        assert values["kappa"] == pytest.approx(0.5)
        assert values["index_error"] == pytest.approx(25 - 50)

    def test_a_missed_nucleus_moves_the_index_but_not_the_agreement(self):
        found = np.where(self.FOUR <= 3, self.FOUR, 0).astype(np.int32)
        positive = np.array([True, True, False, False])
        values = shown(PositivityAgreement(), self.FOUR, found, positive=positive, called=positive[:3])
        assert values["accuracy"] == values["kappa"] == 1
        assert values["index_error"] == pytest.approx(200 / 3 - 50)

    @pytest.mark.parametrize("rows", [[1, 2, 3, 4], [3, 1, 4, 2]], ids=["rows by id", "rows in any order"])
    def test_calls_follow_the_nucleus_whatever_its_id_and_row(self, rows):
        positive = np.array([True, False, False, False])
        backwards = np.where(self.FOUR > 0, 5 - self.FOUR, 0).astype(np.int32)
        label = np.array(rows)
        columns = dict.fromkeys(COLUMNS, np.zeros(4)) | {"label": label, "positive": positive[4 - label]}
        image = Image(np.full((100, 100, 3), 255, np.uint8), 0.25)
        result = Result(image, Labels(backwards, 0.25), Nuclei.from_columns(columns), None, {}, {})
        values = PositivityAgreement().update(result, Sample(image, Labels(self.FOUR, 0.25), positive))
        assert (values["both_positive"], values["both_negative"], values["kappa"]) == (1, 3, 1)

    def test_truth_without_classes_gives_no_value(self):
        metric = PositivityAgreement()
        assert all(map(math.isnan, shown(metric, self.FOUR, self.FOUR).values()))
        pooled = metric.compute()
        assert pooled["images_with_classes"] == 0
        assert math.isnan(pooled["kappa"])

    def test_labels_without_calls_are_refused(self):
        image = Image(np.zeros((100, 100, 3), np.uint8), 0.25)
        none = dict.fromkeys(COLUMNS, np.zeros(0))
        result = Result(image, Labels(self.FOUR, 0.25), Nuclei.from_columns(none), None, {}, {})
        with pytest.raises(ContractViolation, match="4 labels, but 0 rows of calls"):
            PositivityAgreement().update(result, Sample(image, Labels(self.FOUR, 0.25), np.ones(4, bool)))

    @pytest.mark.parametrize("n", [0, 3, 5])
    def test_classes_that_are_not_one_for_each_true_nucleus_are_refused(self, n):
        with pytest.raises(ContractViolation, match=rf"'image': the truth has 4 labels, but classes of shape \({n},\)"):
            shown(PositivityAgreement(), self.FOUR, self.FOUR, positive=np.ones(n, bool))


@pytest.mark.parametrize("metric", MASKS, ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("truth", "prediction"),
    [(NOTHING, NOTHING), (SQUARE, NOTHING), (NOTHING, SQUARE), (NOTHING + 1, SQUARE), (np.ones((1, 1), np.int32),) * 2],
    ids=["neither", "no prediction", "no truth", "all foreground", "one pixel"],
)
def test_degenerate_pictures_are_defined_and_warn_of_nothing(metric, truth, prediction):
    one = metric()
    values = shown(one, truth, prediction)
    assert all(isinstance(value, float) for value in values.values())
    pooled = one.compute()
    assert pooled["images"] == 1
    assert pooled["images_empty"] == (not truth.any() and not prediction.any())


@pytest.mark.parametrize("metric", [*MASKS, PositivityAgreement], ids=lambda one: one.name)
def test_weights_are_pictures_seen_several_times(metric):
    pairs = [(SQUARE, SHIFTED), (boxes((0, 9, 0, 9), (30, 39, 30, 39)), boxes((0, 9, 0, 9))), (NOTHING, NOTHING)]
    calls = [np.zeros(int(p.max()), bool) for _, p in pairs]
    truths = [np.ones(int(t.max()), bool) for t, _ in pairs]
    assert isinstance(metric(), Poolable)

    def show(indices):
        one = metric()
        rows = [shown(one, *pairs[k], positive=truths[k], called=calls[k]) for k in indices]
        return one.compute(), rows

    _, rows = show([0, 1, 2])
    images = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    drawn = metric().pool(images, np.array([[1.0, 1, 1], [2, 0, 1]]))
    for column, indices in enumerate(([0, 1, 2], [0, 0, 2])):
        wanted, _ = show(indices)
        assert drawn.keys() == wanted.keys()
        for name, value in wanted.items():
            assert drawn[name][column] == pytest.approx(value, nan_ok=True), name


def test_nothing_seen_gives_no_picture_and_no_number():
    for metric in (cls() for cls in register_metrics()):
        pooled = metric.compute()
        assert pooled.get("images", 0) == 0


def test_all_metrics_of_one_picture_count_its_pixels_once(monkeypatch):
    import stainbridge.overlap as counted

    sample = synthetic_ihc(shape=(128, 128), nuclei=8, seed=2)
    result = stainbridge.run(sample.source, "identity", "baseline/ihc")
    passes, count = [], counted.overlaps
    monkeypatch.setattr(counted, "overlaps", lambda *maps: passes.append(1) or count(*maps))
    for cls in (PixelDice, InstanceMatching, Panoptic, AggregatedJaccard, CountError, PositivityAgreement):
        cls().update(result, sample)
    assert len(passes) == 1


def test_a_sample_goes_to_another_process_without_what_it_remembers():
    image = Image(np.zeros((100, 100, 3), np.uint8), 0.25)
    sample = Sample(image, Labels(SQUARE, 0.25))
    sample.overlaps(Labels(SHIFTED, 0.25))
    assert pickle.loads(pickle.dumps(sample))._counted is None


@pytest.fixture(scope="module")
def sample():
    return synthetic_ihc(shape=(256, 256), nuclei=24, seed=5)


class TestPreservation:
    def values(self, sample, he):
        source = sample.source
        nuclei = Nuclei.from_columns(dict.fromkeys(COLUMNS, np.zeros(0)))
        result = Result(source, sample.truth, nuclei, he, {}, {"translation": {"core_px": 128}})
        return Preservation().update(result, sample)

    def test_a_good_translation_keeps_more_than_a_mirrored_and_a_blank_one(self, sample):
        ihc = sample.source.read(0, 0, *sample.source.shape)
        he = stainbridge.build("translator", "deconvolution/nuclear").plugin.translate(ihc[None])[0]
        good = self.values(sample, Image(he, sample.source.mpp))
        mirrored = self.values(sample, Image(he[:, ::-1].copy(), sample.source.mpp))
        blank = self.values(sample, Image(np.full_like(he, 240), sample.source.mpp))
        assert good["density_agreement"] > 0.7 > 0.4 > mirrored["density_agreement"]
        assert good["centroid_recall"] > 0.8 > mirrored["centroid_recall"]
        assert blank["centroid_recall"] == blank["count_ratio"] == blank["brown_retention"] == 0
        assert good["seam_ratio"] < 1.3

    def test_erased_brown_nuclei_are_missed(self, sample):
        ihc = sample.source.read(0, 0, *sample.source.shape)
        he = stainbridge.build("translator", "deconvolution/nuclear").plugin.translate(ihc[None])[0].copy()
        brown = np.append(False, sample.positive)[sample.truth.array]
        he[brown] = 240
        erased = self.values(sample, Image(he, sample.source.mpp))
        assert erased["brown_retention"] < 0.3

    def test_without_a_translation_there_is_nothing_to_say(self, sample):
        assert all(map(math.isnan, self.values(sample, None).values()))
