"""Metrics against independent implementations: stardist.matching, cellpose.metrics, and PQ and AJI looped over full masks.

Each difference that is meant has a test of its own.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from skimage.io import imread

from stainbridge import Image, Labels, Nuclei, Result, Sample
from stainbridge.overlap import match_counts, matched, overlaps
from stainbridge_plugins.metrics.masks import AggregatedJaccard, InstanceMatching, Panoptic, PixelDice
from stainbridge_plugins.metrics.pooling import RATES

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SWEEP = tuple(range(50, 101, 5))
EVERY = (1, 10, 20, 30, 40, *SWEEP)
EMPTY = np.zeros((64, 64), np.int32)


def without_gaps(labels):
    """Number the objects 1..n."""
    return (np.unique(np.append(0, labels), return_inverse=True)[1][1:]).reshape(labels.shape).astype(np.int32)


def discs(seed, *, size=160, n=60):
    """Draw discs that cover one another, ids with gaps."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.int32)
    for number in rng.permutation(3 * n)[:n] + 1:
        cy, cx, radius = *rng.integers(0, size, 2), rng.integers(3, 11)
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = number
    return labels


def perturbed(truth, seed):
    """Move the objects, drop every seventh, fuse every eleventh with its neighbour by number, invent a few."""
    rng = np.random.default_rng(seed)
    found = np.roll(truth, tuple(rng.integers(-2, 3, 2)), axis=(0, 1)).copy()
    found[found % 7 == 3] = 0
    found[found % 11 == 5] += 1
    for y, x in rng.integers(0, min(truth.shape) - 12, (6, 2)):
        found[y : y + 9, x : x + 9] = found.max() + 1
    return found


def blocks(seed, *, cells=16, cell=4, ids=50):
    """Squares of random ids: many ties of IoU at round fractions."""
    return np.kron(np.random.default_rng(seed).integers(0, ids, (cells, cells)), np.ones((cell, cell), int)).astype(
        np.int32
    )


RANDOM = [(discs(seed), perturbed(discs(seed), seed)) for seed in range(4)]
RANDOM += [(blocks(seed, ids=ids), blocks(seed + 50, ids=ids)) for seed, ids in ((0, 50), (1, 8), (2, 200))]
RANDOM += [(discs(9), discs(10)), (discs(9), np.zeros_like(discs(9))), (np.zeros_like(discs(9)), discs(9))]


def real():
    """Yield pairs from the real label pictures that are at hand."""
    for folder in ("he_monuseg", "he_nucls"):
        for number, path in enumerate(sorted((DATA / folder).glob("*_labels.png"))[:3]):
            truth = imread(path)[:512, :512].astype(np.int32)
            yield truth, perturbed(truth, number)


@pytest.fixture(scope="module")
def pairs():
    found = list(real())
    if not found:
        pytest.skip("the real label pictures are not beside the repository: shared/data/he_monuseg, he_nucls")
    return found


def shown(metric, pictures):
    """Show pairs of label maps to a metric; return the values of each."""
    none = np.zeros(0)
    columns = ("label", "y", "x", "area_um2", "y0", "x0", "y1", "x1", "p_positive", "positive", "grade", "clipped")
    nuclei = Nuclei.from_columns(dict.fromkeys(columns, none))
    rows = []
    for truth, prediction in pictures:
        image = Image(np.full((*truth.shape, 3), 255, np.uint8), 0.25)
        result = Result(image, Labels(without_gaps(prediction), 0.25), nuclei, None, {}, {})
        rows.append(metric.update(result, Sample(image, Labels(without_gaps(truth), 0.25))))
    return rows


def check_counts_and_rates(pictures):
    from stardist.matching import matching

    for truth, prediction in pictures:
        theirs = matching(truth, prediction, thresh=[pct / 100 for pct in EVERY])
        ours = match_counts(overlaps(truth, prediction), EVERY)
        assert ours.tolist() == [[one.tp, one.fp, one.fn] for one in theirs]
    rows = shown(InstanceMatching(), pictures)
    for (truth, prediction), row in zip(pictures, rows, strict=True):
        for pct, one in zip(SWEEP, matching(truth, prediction, thresh=[pct / 100 for pct in SWEEP]), strict=True):
            for rate in RATES:
                assert row[f"{rate}@{pct / 100:.2f}"] == pytest.approx(getattr(one, rate), abs=1e-12)


def check_data_set(pictures, *, by_image, suffix):
    from stardist.matching import matching_dataset

    metric = InstanceMatching()
    shown(metric, pictures)
    ours = metric.compute()
    truths, predictions = zip(*pictures, strict=True)
    thresholds = [pct / 100 for pct in SWEEP]
    theirs = matching_dataset(
        truths, predictions, thresh=thresholds, by_image=by_image, show_progress=False, parallel=False
    )
    for at, one in zip(thresholds, theirs, strict=True):
        assert [ours[f"{kind}@{at:.2f}"] for kind in ("tp", "fp", "fn")] == [one.tp, one.fp, one.fn]
        for rate in RATES:
            assert ours[f"{rate}{suffix}@{at:.2f}"] == pytest.approx(getattr(one, rate), abs=1e-12), (rate, at)


@pytest.mark.heavy
class TestStarDist:
    """stardist.matching of the stardist package."""

    @pytest.fixture(autouse=True)
    def peer(self):
        pytest.importorskip("stardist", reason="stardist is not installed")

    def test_counts_are_equal_and_rates_to_1e_12_on_random_labels(self):
        check_counts_and_rates(RANDOM)

    def test_counts_are_equal_and_rates_to_1e_12_on_real_labels(self, pairs):
        check_counts_and_rates(pairs)

    @pytest.mark.parametrize(("by_image", "suffix"), [(False, ""), (True, "_mean")])
    def test_data_sets_are_equal_pooled_and_by_image(self, by_image, suffix, pairs):
        check_data_set(RANDOM, by_image=by_image, suffix=suffix)
        check_data_set(pairs, by_image=by_image, suffix=suffix)

    def test_difference_an_empty_image_counts_zero_there_and_nothing_here(self):
        from stardist.matching import matching_dataset

        truth = discs(0)
        perfect, empty = (truth, truth), (np.zeros_like(truth), np.zeros_like(truth))
        truths, predictions = zip(perfect, empty, strict=True)
        theirs = matching_dataset(truths, predictions, thresh=0.5, by_image=True, show_progress=False, parallel=False)
        metric = InstanceMatching()
        rows = shown(metric, [perfect, empty])
        assert theirs.f1 == 0.5
        assert np.isnan(rows[1]["f1@0.50"])
        assert metric.compute()["f1_mean@0.50"] == 1
        assert metric.compute()["images_empty"] == 1

    def test_panoptic_quality_is_equal_where_no_iou_is_exactly_one_half(self, pairs):
        from stardist.matching import matching

        used = 0
        for truth, prediction in (*RANDOM[:4], *pairs):
            found = overlaps(truth, prediction)
            if len(matched(found, 50)) == len(matched(found, 50, strict=True)):
                used += 1
                theirs = matching(truth, prediction, thresh=0.5).panoptic_quality
                # stardist keeps the IoU in float32.
                assert shown(Panoptic(), [(truth, prediction)])[0]["pq"] == pytest.approx(theirs, rel=1e-6)
        assert used >= 4

    def test_difference_an_iou_of_exactly_one_half_is_a_match_there_and_none_in_panoptic(self):
        from stardist.matching import matching

        truth, prediction = EMPTY.copy(), EMPTY.copy()
        truth[:2, :2] = prediction[:2, :1] = 1
        assert matching(truth, prediction, thresh=0.5).panoptic_quality == 0.5
        assert shown(Panoptic(), [(truth, prediction)])[0]["pq"] == 0
        assert shown(InstanceMatching(), [(truth, prediction)])[0]["tp@0.50"] == 1


@pytest.mark.heavy
class TestCellpose:
    """cellpose.metrics of the cellpose package."""

    @pytest.fixture
    def peer(self):
        return pytest.importorskip("cellpose.metrics", reason="cellpose is not installed")

    def test_average_precision_is_our_accuracy_without_gaps_in_the_ids(self, peer, pairs):
        pictures = [tuple(map(without_gaps, pair)) for pair in (*RANDOM[:8], *pairs)]
        thresholds = [pct / 100 for pct in SWEEP]
        for (truth, prediction), row in zip(pictures, shown(InstanceMatching(), pictures), strict=True):
            ap, tp, fp, fn = (one[0] for one in peer.average_precision([truth], [prediction], threshold=thresholds))
            assert match_counts(overlaps(truth, prediction), SWEEP).tolist() == np.stack([tp, fp, fn], 1).tolist()
            # cellpose keeps float32.
            assert [row[f"accuracy@{at:.2f}"] for at in thresholds] == pytest.approx(ap.tolist(), abs=1e-6)

    def test_difference_gaps_in_the_ids_are_objects_there(self, peer):
        truth = EMPTY.copy()
        truth[:9, :9], truth[20:29, :9] = 1, 2
        gapped = np.where(truth == 2, 5, truth)
        assert peer.average_precision(truth, gapped, threshold=[0.5])[0].item() == pytest.approx(2 / 5)
        assert match_counts(overlaps(truth, gapped), [50]).tolist() == [[2, 0, 0]]

    def test_difference_its_aggregated_jaccard_is_another_measure(self, peer):
        truth, prediction = EMPTY.copy(), EMPTY.copy()
        truth[:10, :10], truth[:10, 10:20], prediction[:10, :20] = 1, 2, 1
        values = shown(AggregatedJaccard(), [(truth, prediction)])[0]
        assert (values["aji"], values["aji_plus"]) == pytest.approx((1 / 2, 1 / 3))
        # The overlap of the one pair over the foreground of both.
        assert peer.aggregated_jaccard_index([truth], [prediction])[0] == pytest.approx(100 / 200)
        assert values["all_px"] == 400


def masks(labels):
    """Return one full mask per object."""
    return [labels == label for label in np.unique(labels[labels > 0])]


def tables(truth, prediction):
    """Return intersections and unions of everything with everything, by full masks."""
    both = np.array([[(a & b).sum() for b in prediction] for a in truth], float).reshape(len(truth), len(prediction))
    either = np.array([[(a | b).sum() for b in prediction] for a in truth], float).reshape(both.shape)
    return both, either


def looped_pq(truth, prediction):
    """Panoptic quality as hover_net has it: IoU strictly above one half."""
    t, p = masks(truth), masks(prediction)
    both, either = tables(t, p)
    iou = both / either
    tp = (iou > 0.5).sum()
    dq = tp / (tp + (len(p) - tp) / 2 + (len(t) - tp) / 2)
    return dq, iou[iou > 0.5].sum() / (tp + 1e-6), iou[iou > 0.5].sum() / max(tp, 1)


def looped_aji(truth, prediction, *, one_to_one):
    """Aggregated Jaccard index, MoNuSeg's or hover_net's `plus`."""
    t, p = masks(truth), masks(prediction)
    both, either = tables(t, p)
    iou = both / either
    if one_to_one:
        chosen = [(i, j) for i, j in zip(*linear_sum_assignment(-iou), strict=True) if iou[i, j] > 0]
    else:
        chosen = [(i, int(np.argmax(iou[i]))) for i in range(len(t)) if iou[i].max() > 0]
    used_t, used_p = {i for i, _ in chosen}, {j for _, j in chosen}
    every = sum(either[pair] for pair in chosen)
    every += sum(mask.sum() for i, mask in enumerate(t) if i not in used_t)
    every += sum(mask.sum() for j, mask in enumerate(p) if j not in used_p)
    return sum(both[pair] for pair in chosen) / every


SMALL = [(discs(seed, size=96, n=25), perturbed(discs(seed, size=96, n=25), seed)) for seed in range(5)]


class TestLoopsOverFullMasks:
    @pytest.mark.parametrize("pair", SMALL)
    def test_panoptic_quality_is_equal(self, pair):
        values = shown(Panoptic(), [pair])[0]
        dq, with_epsilon, sq = looped_pq(*pair)
        assert (values["dq"], values["sq"], values["pq"]) == pytest.approx((dq, sq, dq * sq), abs=1e-12)
        # Difference: hover_net adds 1e-6 to the number of pairs.
        assert values["sq"] == pytest.approx(with_epsilon, abs=1e-6)

    @pytest.mark.parametrize("pair", SMALL)
    def test_both_aggregated_jaccard_indices_are_equal(self, pair):
        values = shown(AggregatedJaccard(), [pair])[0]
        assert values["aji"] == pytest.approx(looped_aji(*pair, one_to_one=False), abs=1e-12)
        assert values["aji_plus"] == pytest.approx(looped_aji(*pair, one_to_one=True), abs=1e-12)

    @pytest.mark.parametrize("pair", SMALL)
    def test_dice_is_equal(self, pair):
        truth, prediction = (labels > 0 for labels in pair)
        expected = 2 * (truth & prediction).sum() / (truth.sum() + prediction.sum())
        assert shown(PixelDice(), [pair])[0]["dice"] == pytest.approx(expected, abs=1e-12)

    def test_means_over_images_are_means_of_the_images(self):
        panoptic, jaccard = Panoptic(), AggregatedJaccard()
        shown(panoptic, SMALL)
        shown(jaccard, SMALL)
        dq, _, sq = np.array([looped_pq(*pair) for pair in SMALL]).T
        assert panoptic.compute()["pq_mean"] == pytest.approx(np.mean(dq * sq), abs=1e-12)
        expected = np.mean([looped_aji(*pair, one_to_one=False) for pair in SMALL])
        assert jaccard.compute()["aji_mean"] == pytest.approx(expected, abs=1e-12)

    def test_difference_pictures_without_nuclei_are_nan_and_counted(self):
        for metric, name in ((Panoptic(), "pq"), (AggregatedJaccard(), "aji")):
            rows = shown(metric, [SMALL[0], (EMPTY, EMPTY)])
            assert np.isnan(rows[1][name])
            assert metric.compute()["images_empty"] == 1
            assert metric.compute()[f"{name}_mean"] == pytest.approx(rows[0][name])
