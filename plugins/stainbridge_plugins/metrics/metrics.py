"""The metric classes: per image when updated, pooled and averaged when computed."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stainbridge import Metric, Result, Sample

from .matching import Overlaps, dice_counts, match_counts, overlaps

RATES = ("accuracy", "precision", "recall", "f1")


class PixelDice(Metric):
    """Dice coefficient of the nuclear pixels, whatever the instances.

    An image with neither truth nor prediction has no Dice: its value is NaN; it is counted and left out of the mean.
    """

    name = "dice"
    api = 1

    def __init__(self) -> None:
        self._counts: list[tuple[int, int, int]] = []

    def update(self, result: Result, truth: Sample) -> dict[str, float]:
        """Return `dice` of this image, 0..1 or NaN."""
        self._counts.append(dice_counts(_overlaps(result, truth)))
        return {"dice": _dice(*self._counts[-1])}

    def compute(self) -> dict[str, float]:
        """Return `dice_mean` over images, `dice_pooled` over pixels, and the numbers of images and of empty ones."""
        each = [_dice(*counts) for counts in self._counts]
        return {
            "dice_mean": _mean(each),
            "dice_pooled": _dice(*(sum(column) for column in zip(*self._counts, strict=True))) if each else math.nan,
            "images": float(len(each)),
            "images_empty": float(sum(map(math.isnan, each))),
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
        self._counts: list[NDArray[np.int64]] = []

    def update(self, result: Result, truth: Sample) -> dict[str, float]:
        """Return the counts and rates of this image."""
        self._counts.append(match_counts(_overlaps(result, truth), self.thresholds_pct))
        return self._named(self._counts[-1])

    def compute(self) -> dict[str, float]:
        """Return pooled counts and rates, `RATE_mean@0.50` over images, and the numbers of images and of empty ones."""
        each = [self._named(counts) for counts in self._counts]
        pooled = self._named(sum(self._counts, np.zeros((len(self.thresholds_pct), 3), np.int64)))
        means = {
            f"{rate}_mean@{pct / 100:.2f}": _mean([values[f"{rate}@{pct / 100:.2f}"] for values in each])
            for pct in self.thresholds_pct
            for rate in RATES
        }
        empty = sum(not counts.any() for counts in self._counts)
        return {**pooled, **means, "images": float(len(each)), "images_empty": float(empty)}

    def _named(self, counts: NDArray[np.int64]) -> dict[str, float]:
        named: dict[str, float] = {}
        for pct, (tp, fp, fn) in zip(self.thresholds_pct, counts.tolist(), strict=True):
            values = {"tp": float(tp), "fp": float(fp), "fn": float(fn), **rates(tp, fp, fn)}
            named.update({f"{key}@{pct / 100:.2f}": value for key, value in values.items()})
        return named


def rates(tp: int, fp: int, fn: int) -> dict[str, float]:
    """Return accuracy, precision, recall and f1, each 0..1; 0 where tp is 0; NaN where there is no object at all."""
    if tp + fp + fn == 0:
        return dict.fromkeys(RATES, math.nan)
    if tp == 0:
        return dict.fromkeys(RATES, 0.0)
    values = (tp / (tp + fp + fn), tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn))
    return dict(zip(RATES, values, strict=True))


def _overlaps(result: Result, truth: Sample) -> Overlaps:
    return overlaps(truth.truth.array, result.labels.read(0, 0, *result.labels.shape))


def _dice(both: int, truth: int, prediction: int) -> float:
    return 2 * both / (truth + prediction) if truth + prediction else math.nan


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
