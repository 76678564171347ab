"""Our counts against stardist.matching and cellpose.metrics, on random and on real labels; each known difference is a test."""

from pathlib import Path

import numpy as np
import pytest
from skimage.io import imread

from stainbridge import Image, Labels, Result, Sample
from stainbridge.overlap import match_counts, overlaps
from stainbridge_plugins.metrics.masks import InstanceMatching, Panoptic
from stainbridge_plugins.metrics.pooling import RATES

SWEEP = tuple(range(50, 101, 5))
BELOW = (10, 20, 30, 40)
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("default")]
stardist = pytest.importorskip("stardist.matching", reason="stardist is not installed")


def random_labels(rng, size=96, cells=8, gaps=False):
    """Scatter overlapping discs; later ones lie on top, so that some ids vanish."""
    labels = np.zeros((size, size), np.int32)
    yy, xx = np.mgrid[:size, :size]
    for number in range(1, cells * cells // 2):
        y, x, r = rng.integers(0, size), rng.integers(0, size), rng.integers(3, 10)
        labels[(yy - y) ** 2 + (xx - x) ** 2 < r * r] = number
    return labels if gaps else np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def perturbed(labels, rng):
    """Shift, erase and join some nuclei of a truth."""
    changed = np.roll(labels, rng.integers(-4, 5, 2), (0, 1))
    ids = np.arange(labels.max() + 1)
    ids[rng.integers(1, len(ids), len(ids) // 6)] = 0
    joined = rng.integers(1, len(ids), len(ids) // 8)
    ids[joined] = ids[np.maximum(joined - 1, 1)]
    return np.unique(ids[changed], return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def pairs():
    rng = np.random.default_rng(11)
    return [(random_labels(rng), random_labels(rng)) for _ in range(6)] + [
        (truth, perturbed(truth, rng)) for truth in (random_labels(rng, 160, 10) for _ in range(4))
    ]


def real_pairs():
    rng = np.random.default_rng(12)
    for folder in ("he_monuseg", "he_nucls"):
        for path in sorted((DATA / folder).glob("*_labels.png"))[:4]:
            raw = imread(path)
            truth = np.unique(np.append(0, raw), return_inverse=True)[1][1:].reshape(raw.shape).astype(np.int32)
            yield truth, perturbed(truth, rng)


def same(truth, prediction):
    for pct in (*BELOW, *SWEEP):
        theirs = stardist.matching(truth, prediction, thresh=pct / 100)
        # 0.55 and its like are no binary numbers: theirs compares floats, ours whole numbers; both agree on these labels.
        ours = match_counts(overlaps(truth, prediction), [pct])[0].tolist()
        assert ours == [theirs.tp, theirs.fp, theirs.fn], pct


def shown(metric, truth, prediction):
    image = Image(np.zeros((*truth.shape, 3), np.uint8), 0.25)
    return metric.update(Result(image, Labels(prediction), None, None, {}, {}), Sample(image, Labels(truth)))


def test_counts_equal_stardists_on_random_labels_at_all_thresholds():
    for truth, prediction in pairs():
        same(truth, prediction)


@pytest.mark.skipif(not DATA.exists(), reason="the real labels in ../shared/data are not here")
def test_counts_equal_stardists_on_real_labels_at_all_thresholds():
    found = list(real_pairs())
    assert len(found) == 8
    for truth, prediction in found:
        same(truth, prediction)


def test_counts_equal_stardists_where_ids_have_gaps():
    rng = np.random.default_rng(5)
    same(random_labels(rng, gaps=True), random_labels(rng, gaps=True))


def test_rates_equal_stardists_pooled_and_by_image():
    shapes = [(truth, prediction) for truth, prediction in pairs() if truth.shape == (96, 96)]
    metric = InstanceMatching()
    for pair in shapes:
        shown(metric, *pair)
    ours = metric.compute()
    truths, predictions = ([pair[k] for pair in shapes] for k in (0, 1))
    for pct in SWEEP:
        at = f"{pct / 100:.2f}"
        for suffix, by_image in (("", False), ("_mean", True)):
            theirs = stardist.matching_dataset(
                truths, predictions, thresh=pct / 100, by_image=by_image, show_progress=False
            )
            for rate in RATES:
                assert ours[f"{rate}{suffix}@{at}"] == pytest.approx(getattr(theirs, rate), abs=1e-12), (rate, pct)


def test_known_difference_a_picture_without_nuclei_counts_nought_there_and_is_left_out_here():
    empty, full = np.zeros((32, 32), np.int32), np.zeros((32, 32), np.int32)
    full[4:9, 4:9] = 1
    theirs = stardist.matching_dataset([empty, full], [empty, full], thresh=0.5, by_image=True, show_progress=False)
    metric = InstanceMatching()
    shown(metric, empty, empty)
    shown(metric, full, full)
    assert theirs.f1 == 0.5
    assert metric.compute()["f1_mean@0.50"] == 1
    assert metric.compute()["images_empty"] == 1


def test_panoptic_quality_equals_stardists_where_no_iou_is_one_half():
    for truth, prediction in pairs():
        if (overlaps(truth, prediction).iou == 0.5).any():
            continue
        theirs = stardist.matching(truth, prediction, thresh=0.5)
        # Theirs sums IoU in single precision.
        assert shown(Panoptic(), truth, prediction)["pq"] == pytest.approx(theirs.panoptic_quality, abs=1e-6)


def test_known_difference_an_iou_of_one_half_matches_there_and_not_in_panoptic_quality():
    truth, prediction = np.zeros((8, 8), np.int32), np.zeros((8, 8), np.int32)
    truth[0, 0:4], prediction[0, 0:2] = 1, 1
    assert stardist.matching(truth, prediction, thresh=0.5).panoptic_quality == 0.5
    assert shown(Panoptic(), truth, prediction)["pq"] == 0


class TestCellpose:
    @pytest.fixture
    def average_precision(self):
        return pytest.importorskip("cellpose.metrics", reason="cellpose is not installed").average_precision

    def test_accuracy_equals_its_average_precision_on_labels_without_gaps(self, average_precision):
        for truth, prediction in pairs():
            precision, tp, fp, fn = average_precision([truth], [prediction], threshold=[0.5, 0.75, 0.9])
            for column, pct in enumerate((50, 75, 90)):
                values = shown(InstanceMatching(), truth, prediction)
                at = f"{pct / 100:.2f}"
                assert [values[f"{kind}@{at}"] for kind in ("tp", "fp", "fn")] == [
                    tp[0, column],
                    fp[0, column],
                    fn[0, column],
                ]
                assert values[f"accuracy@{at}"] == pytest.approx(precision[0, column], abs=1e-6)

    def test_known_difference_it_counts_objects_by_the_largest_id(self, average_precision):
        truth = np.zeros((32, 32), np.int32)
        truth[2:6, 2:6], truth[12:16, 12:16] = 1, 2
        gapped = np.where(truth == 2, 9, truth)
        assert average_precision([truth], [gapped], threshold=[0.5])[0][0, 0] < 1
        assert match_counts(overlaps(truth, gapped), [50])[0].tolist() == [2, 0, 0]
