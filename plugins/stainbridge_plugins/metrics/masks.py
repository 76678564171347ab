"""Metrics of masks: pixels, and instances matched by the pixels they share."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stainbridge import Metric, Result, Sample
from stainbridge.overlap import best_partners, dice_counts, jaccard_counts, match_counts, matched, one_to_one

from .pooling import RATES, Columns, Tally, Weights, images_seen, mean, rates, ratio, total


class PixelDice(Metric):
    """Dice coefficient of the nuclear pixels, whatever the instances.

    An image with neither truth nor prediction has no Dice: its value is NaN; it is counted and left out of the mean.
    """

    name = "dice"
    api = 1

    def __init__(self) -> None:
        self._tally = Tally(("dice", "both_px", "truth_px", "prediction_px"), self.pool)

    def update(self, result: Result, truth: Sample) -> dict[str, float]:
        """Return `dice` of this image, 0..1 or NaN, and the pixels in both, in truth and in the prediction."""
        both, true, predicted = dice_counts(truth.overlaps(result.labels))
        dice = 2 * both / (true + predicted) if true + predicted else np.nan
        return self._tally.add({"dice": dice, "both_px": both, "truth_px": true, "prediction_px": predicted})

    def compute(self) -> dict[str, float]:
        """Return `dice_mean` over images, `dice_pooled` over pixels, and the numbers of images and of empty ones."""
        return self._tally.compute()

    def pool(self, images: Columns, weights: Weights) -> dict[str, NDArray[np.float64]]:
        """Pool the values of pictures; see `stainbridge.Poolable`."""
        both, true, predicted = (total(images[name], weights) for name in ("both_px", "truth_px", "prediction_px"))
        return {
            "dice_mean": mean(images["dice"], weights),
            "dice_pooled": ratio(2 * both, true + predicted),
            **images_seen(weights, np.isnan(images["dice"])),
        }


class InstanceMatching(Metric):
    """Nuclei found, invented and missed at each IoU threshold, and the rates that follow.

    Keys are `NAME@0.50` for tp, fp, fn, accuracy, precision, recall and f1. precision = tp / (tp + fp), recall =
    tp / (tp + fn), accuracy = tp / (tp + fp + fn), f1 = 2 tp / (2 tp + fp + fn); 0 where tp is 0. Equal to
    stardist.matching except that an image with neither truth nor prediction has NaN rates (there: 0); it is counted and
    left out of the means.
    """

    name = "matching"
    api = 1
    thresholds_pct: ClassVar[tuple[int, ...]] = tuple(range(50, 101, 5))
    """IoU thresholds in hundredths."""

    def __init__(self) -> None:
        kinds = ("tp", "fp", "fn", *RATES)
        self._tally = Tally([f"{kind}@{at}" for at in self._thresholds() for kind in kinds], self.pool)

    def update(self, result: Result, truth: Sample) -> dict[str, float]:
        """Return the counts and rates of this image."""
        counts = match_counts(truth.overlaps(result.labels), self.thresholds_pct).astype(np.float64)
        each = rates(*counts.T)
        row: dict[str, float] = {}
        for index, at in enumerate(self._thresholds()):
            row |= {f"{kind}@{at}": value for kind, value in zip(("tp", "fp", "fn"), counts[index], strict=True)}
            row |= {f"{rate}@{at}": values[index] for rate, values in each.items()}
        return self._tally.add(row)

    def compute(self) -> dict[str, float]:
        """Return pooled counts and rates, `RATE_mean@0.50` over images, and the numbers of images and of empty ones."""
        return self._tally.compute()

    def pool(self, images: Columns, weights: Weights) -> dict[str, NDArray[np.float64]]:
        """Pool the values of pictures; see `stainbridge.Poolable`."""
        pooled: dict[str, NDArray[np.float64]] = {}
        for at in self._thresholds():
            counts = {kind: total(images[f"{kind}@{at}"], weights) for kind in ("tp", "fp", "fn")}
            pooled |= {f"{kind}@{at}": values for kind, values in (counts | rates(**counts)).items()}
            pooled |= {f"{rate}_mean@{at}": mean(images[f"{rate}@{at}"], weights) for rate in RATES}
        first = self._thresholds()[0]
        return pooled | images_seen(weights, np.isnan(images[f"f1@{first}"]))

    def _thresholds(self) -> list[str]:
        return [f"{pct / 100:.2f}" for pct in self.thresholds_pct]


class Panoptic(Metric):
    """Detection, segmentation and panoptic quality at IoU > 0.5.

    dq = tp / (tp + fp / 2 + fn / 2), sq = mean IoU of the matched, pq = dq sq; 0 where nothing matched. A pair of IoU exactly 0.5 is no
    match, as in hover_net and unlike stardist. Source: Kirillov et al., Panoptic Segmentation, CVPR 2019; hover_net's sq divides by
    tp + 1e-6, ours by tp.
    """

    name = "panoptic"
    api = 1

    def __init__(self) -> None:
        self._tally = Tally(("tp", "fp", "fn", "iou_sum", "dq", "sq", "pq"), self.pool)

    def update(self, result: Result, truth: Sample) -> dict[str, float]:
        """Return the counts, the sum of IoU, and dq, sq, pq of this image; NaN with neither truth nor prediction."""
        found = truth.overlaps(result.labels)
        pairs = matched(found, 50, strict=True)
        tp = float(len(pairs))
        counts = {"tp": tp, "fp": len(found.prediction_px) - tp, "fn": len(found.truth_px) - tp}
        counts["iou_sum"] = float(found.iou[pairs].sum())
        quality = _quality(**{kind: np.array([value], np.float64) for kind, value in counts.items()})
        return self._tally.add(counts | {kind: values[0] for kind, values in quality.items()})

    def compute(self) -> dict[str, float]:
        """Return dq, sq, pq of the pooled counts, and `dq_mean`, `sq_mean`, `pq_mean` over images."""
        return self._tally.compute()

    def pool(self, images: Columns, weights: Weights) -> dict[str, NDArray[np.float64]]:
        """Pool the values of pictures; see `stainbridge.Poolable`."""
        counts = {kind: total(images[kind], weights) for kind in ("tp", "fp", "fn", "iou_sum")}
        means = {f"{kind}_mean": mean(images[kind], weights) for kind in ("dq", "sq", "pq")}
        return {**_quality(**counts), **means, **images_seen(weights, np.isnan(images["pq"]))}


class AggregatedJaccard(Metric):
    """Aggregated Jaccard index: shared pixels over all pixels of matched pairs and of whatever was not matched.

    `aji`: each true nucleus takes the prediction of greatest IoU, and several may take the same one (Kumar et al., IEEE Trans Med
    Imaging 36, 2017). `aji_plus`: one to one, the sum of IoU greatest (Graham et al., Med Image Anal 58, 2019). cellpose's function of
    that name is another measure.
    """

    name = "aji"
    api = 1

    def __init__(self) -> None:
        parts = ("shared_px", "all_px")
        self._tally = Tally([f"{one}{kind}" for kind in ("", "_plus") for one in ("aji", *parts)], self.pool)

    def update(self, result: Result, truth: Sample) -> dict[str, float]:
        """Return `aji` and `aji_plus` of this image, 0..1 or NaN, and the pixels they are made of."""
        found = truth.overlaps(result.labels)
        row: dict[str, float] = {}
        for kind, pairs in (("", best_partners(found)), ("_plus", one_to_one(found))):
            shared, every = jaccard_counts(found, pairs)
            row |= {f"aji{kind}": shared / every if every else np.nan}
            row |= {f"shared_px{kind}": shared, f"all_px{kind}": every}
        return self._tally.add(row)

    def compute(self) -> dict[str, float]:
        """Return both over the pixels of all images, and `aji_mean`, `aji_plus_mean` over images."""
        return self._tally.compute()

    def pool(self, images: Columns, weights: Weights) -> dict[str, NDArray[np.float64]]:
        """Pool the values of pictures; see `stainbridge.Poolable`."""
        pooled: dict[str, NDArray[np.float64]] = {}
        for kind in ("", "_plus"):
            shared, every = (total(images[f"{part}{kind}"], weights) for part in ("shared_px", "all_px"))
            pooled |= {f"aji{kind}": ratio(shared, every), f"aji{kind}_mean": mean(images[f"aji{kind}"], weights)}
        return pooled | images_seen(weights, np.isnan(images["aji"]))


def _quality(
    tp: NDArray[np.float64], fp: NDArray[np.float64], fn: NDArray[np.float64], iou_sum: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    anything = tp + fp + fn > 0
    dq = ratio(tp, tp + fp / 2 + fn / 2)
    sq = np.where(anything & (tp == 0), 0.0, ratio(iou_sum, tp))
    return {"dq": dq, "sq": sq, "pq": dq * sq}
