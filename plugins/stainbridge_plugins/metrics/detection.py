"""Metrics of detection: nuclei as points, and how many there are."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stainbridge import Metric, Result, Sample
from stainbridge.errors import ScaleUnknown
from stainbridge.points import centroids, matched_points

from .pooling import Columns, Tally, Weights, images_seen, mean, rates, ratio, total


class Detection(Metric):
    """Precision, recall and F1 of centroids within `radius_um` of each other.

    Pairs are one to one: as many as possible and, among equals, the nearest. Keys that end in `_greedy` take the nearest pair first
    instead, as some challenges do.
    """

    name = "detection"
    api = 1
    radius_um: ClassVar[float] = 4.0
    """Farthest that a found centroid may lie from the true one, micrometres."""

    def __init__(self) -> None:
        kinds = ("tp", "fp", "fn", "precision", "recall", "f1")
        self._tally = Tally([f"{kind}{way}" for way in ("", "_greedy") for kind in kinds], self.pool)

    def update(self, result: Result, truth: Sample) -> dict[str, float]:
        """Return counts and rates of this image; NaN rates with neither truth nor prediction."""
        if truth.source.mpp is None:
            raise ScaleUnknown(f"{truth.source.name!r} has no pixel size; distances need micrometres per pixel.")
        radius_px = self.radius_um / truth.source.mpp
        true, found = centroids(truth.truth.array), centroids(result.labels.read(0, 0, *result.labels.shape))
        row: dict[str, float] = {}
        for way, greedy in (("", False), ("_greedy", True)):
            tp = len(matched_points(true, found, radius_px, greedy=greedy))
            counts = {"tp": tp, "fp": len(found) - tp, "fn": len(true) - tp}
            each = rates(*(np.array([value], np.float64) for value in counts.values()))
            row |= {f"{kind}{way}": float(value) for kind, value in counts.items()}
            row |= {f"{kind}{way}": float(each[kind][0]) for kind in ("precision", "recall", "f1")}
        return self._tally.add(row)

    def compute(self) -> dict[str, float]:
        """Return pooled counts and rates, and `f1_mean` over images; each also `_greedy`."""
        return self._tally.compute()

    def pool(self, images: Columns, weights: Weights) -> dict[str, NDArray[np.float64]]:
        """Pool the values of pictures; see `stainbridge.Poolable`."""
        pooled: dict[str, NDArray[np.float64]] = {}
        for way in ("", "_greedy"):
            counts = {kind: total(images[f"{kind}{way}"], weights) for kind in ("tp", "fp", "fn")}
            each = rates(**counts)
            pooled |= {f"{kind}{way}": values for kind, values in counts.items()}
            pooled |= {f"{kind}{way}": each[kind] for kind in ("precision", "recall", "f1")}
            pooled[f"f1_mean{way}"] = mean(images[f"f1{way}"], weights)
        return pooled | images_seen(weights, np.isnan(images["f1"]))


class CountError(Metric):
    """How many nuclei too many or too few."""

    name = "count"
    api = 1

    def __init__(self) -> None:
        self._tally = Tally(("truth", "found", "error", "error_abs", "error_relative"), self.pool)

    def update(self, result: Result, truth: Sample) -> dict[str, float]:
        """Return both counts, found minus true, its size, and as a share of the true count (NaN without truth)."""
        overlaps = truth.overlaps(result.labels)
        true, found = len(overlaps.truth_px), len(overlaps.prediction_px)
        error = float(found - true)
        relative = error / true if true else np.nan
        row = {"truth": true, "found": found, "error": error, "error_abs": abs(error), "error_relative": relative}
        return self._tally.add(row)

    def compute(self) -> dict[str, float]:
        """Return the counts of all images, the error of their sum as a share, and the mean errors over images."""
        return self._tally.compute()

    def pool(self, images: Columns, weights: Weights) -> dict[str, NDArray[np.float64]]:
        """Pool the values of pictures; see `stainbridge.Poolable`."""
        true, found = total(images["truth"], weights), total(images["found"], weights)
        names = ("error", "error_abs", "error_relative")
        means = {f"{name}_mean": mean(images[name], weights) for name in names}
        empty = (images["truth"] == 0) & (images["found"] == 0)
        pooled = {"truth": true, "found": found, "error_relative": ratio(found - true, true)}
        return {**pooled, **means, **images_seen(weights, empty)}
