"""Agreement of positive and negative calls with truth."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stainbridge import Metric, Result, Sample
from stainbridge.errors import ContractViolation
from stainbridge.overlap import matched

from .pooling import Columns, Tally, Weights, mean, ratio, total

_CONFUSION = ("both_positive", "only_truth_positive", "only_found_positive", "both_negative")


class PositivityAgreement(Metric):
    """Accuracy and Cohen's kappa over nuclei that match at IoU >= 0.5, and the error of the Ki-67 index.

    The index is the percentage of positive nuclei among all: of all that were found against all true ones, so that it also counts what
    was missed or invented. Without classes in the truth every value is NaN. Source of kappa: Cohen, Educ Psychol Meas 20, 1960.
    """

    name = "positivity"
    api = 1

    def __init__(self) -> None:
        self._tally = Tally(
            (*_CONFUSION, "accuracy", "kappa", "index_truth", "index_found", "index_error", "index_error_abs"),
            self.pool,
        )

    def update(self, result: Result, truth: Sample) -> dict[str, float]:
        """Return the confusion of matched nuclei, accuracy, kappa, and both indices in percent with their difference in points."""
        if truth.positive is None:
            return self._tally.add(dict.fromkeys(self._tally.names, math.nan))
        found = truth.overlaps(result.labels)
        classes, called = _classes(truth, len(found.truth_px)), _calls(result, len(found.prediction_px))
        pairs = matched(found, 50)
        true, ours = classes[found.i[pairs]], called[found.j[pairs]]
        kinds = (true & ours, true & ~ours, ~true & ours, ~true & ~ours)
        row = {name: float(kind.sum()) for name, kind in zip(_CONFUSION, kinds, strict=True)}
        agreement = _agreement(*(np.array([row[name]]) for name in _CONFUSION))
        row |= {name: float(values[0]) for name, values in agreement.items()}
        of_truth, of_found = _percent(classes), _percent(called)
        error = of_found - of_truth
        return self._tally.add(
            row
            | {"index_truth": of_truth, "index_found": of_found, "index_error": error, "index_error_abs": abs(error)}
        )

    def compute(self) -> dict[str, float]:
        """Return accuracy and kappa over the nuclei of all images, and the mean error of the index over images, in points."""
        return self._tally.compute()

    def pool(self, images: Columns, weights: Weights) -> dict[str, NDArray[np.float64]]:
        """Pool the values of pictures; see `stainbridge.Poolable`."""
        pooled = _agreement(*(total(images[name], weights) for name in _CONFUSION))
        names = ("index_error", "index_error_abs")
        means = {f"{name}_mean": mean(images[name], weights) for name in names}
        known = weights @ np.isfinite(images["both_positive"]).astype(np.float64)
        return {**pooled, **means, "images": weights.sum(axis=1), "images_with_classes": known}


def _classes(truth: Sample, n: int) -> NDArray[np.bool_]:
    """Return the class of each true nucleus."""
    classes = np.asarray(truth.positive, bool)
    if classes.shape != (n,):
        raise ContractViolation(
            f"{truth.source.name!r}: the truth has {n} labels, but classes of shape {classes.shape}; each label needs one."
        )
    return classes


def _calls(result: Result, n: int) -> NDArray[np.bool_]:
    """Return the call of each predicted nucleus in the order of the ids."""
    nuclei = result.nuclei
    if len(nuclei) != n:
        raise ContractViolation(
            f"The prediction has {n} labels, but {len(nuclei)} rows of calls; each label needs one."
        )
    return np.asarray(nuclei.positive, bool)[np.argsort(nuclei.label, kind="stable")]


def _agreement(
    pp: NDArray[np.float64], pn: NDArray[np.float64], np_: NDArray[np.float64], nn: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    n = pp + pn + np_ + nn
    observed = ratio(pp + nn, n)
    by_chance = ratio((pp + pn) * (pp + np_) + (nn + np_) * (nn + pn), n * n)
    return {"accuracy": observed, "kappa": ratio(observed - by_chance, 1 - by_chance)}


def _percent(positive: NDArray[np.bool_]) -> float:
    return 100 * float(positive.mean()) if positive.size else math.nan
