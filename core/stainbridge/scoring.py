"""Scores of a picture from its nuclei: percent positive (Ki-67 index), H-score, Allred and densities, with intervals.

Every score is a function of four numbers, the nuclei per intensity class: 0 for a nucleus called negative; for one
called positive its grade by DAB optical density, 1 at least. So a brown haze over a negative nucleus adds nothing to
the H-score, and a positive nucleus paler than the 1+ cut still counts as weak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Required, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, ContractViolation, nearest
from .interfaces import GRADE_CUTS
from .records import Nuclei
from .resampling import resample

SENSITIVITY_P = tuple(step / 20 for step in range(1, 20))
"""Thresholds of P(positive) at which the sensitivity curve is given."""

LEVEL = 0.95
"""Confidence of the intervals."""


class Options(TypedDict, total=False):
    """The keywords of `score`."""

    area_mm2: Required[float]
    mpp: Required[float]
    seed: int
    bootstraps: int
    block_um: float


def score(
    nuclei: Nuclei,
    *,
    area_mm2: float,
    mpp: float,
    seed: int = 0,
    bootstraps: int = 1000,
    block_um: float = 100.0,
) -> dict[str, Any]:
    """Score a picture.

    Nuclei of one field resemble each other, so the intervals resample square blocks of `block_um`, drawn with
    replacement from those that hold nuclei. With fewer than `resampling.MIN_BLOCKS` of them, nuclei are resampled as if
    independent, each weighing Poisson(1). Intervals are percentiles of the resamplings; that of a percentage of 0 or
    100 has no width.

    Parameters
    ----------
    nuclei : one row per nucleus
    area_mm2 : area that was searched, square millimetres
    mpp : micrometres per pixel of the centroids
    seed : of the resampling
    bootstraps : number of resamplings; 0 leaves the intervals out
    block_um : side of a block, micrometres

    Returns
    -------
    scores : plain JSON values: ``counts`` (total, positive, negative, and grade: nuclei per intensity class),
        ``percent_positive`` (0..100, the Ki-67 index of a Ki-67 stain), ``h_score`` (0..300), ``allred`` (proportion
        0..5, intensity 0..3, total 0..8), ``density_per_mm2``, ``area_mm2``, ``sensitivity`` (percent positive over the
        threshold of the classifier); the same keys under ``intervals`` as
        [low, high] of 95 %; and how they were made under ``bootstrap``. A score of no nuclei is None.

    Raises
    ------
    ConfigError
        If an area, a length or a number is out of range.
    """
    _check_options(area_mm2, mpp, seed, bootstraps, block_um)
    classes = _intensity_class(nuclei)
    position = np.stack([nuclei.y, nuclei.x]) * (mpp / block_um)
    drawn = resample(classes, position, bootstraps, np.random.default_rng(seed))
    values = _statistics(np.bincount(classes, minlength=4), area_mm2)
    draws = _statistics(drawn.counts, area_mm2)
    intervals = {name: _interval(draws[name], whole=_is_whole(name)) if len(nuclei) else None for name in values}
    return {
        **_nested({name: _plain(value, whole=_is_whole(name)) for name, value in values.items()}),
        "area_mm2": float(area_mm2),
        "sensitivity": {"by": "p_positive", **sensitivity(nuclei.p_positive, SENSITIVITY_P)},
        "intervals": _nested(intervals),
        "bootstrap": {
            "resampled": drawn.unit,
            "units": drawn.units,
            "block_um": float(block_um),
            "bootstraps": int(bootstraps),
            "level": LEVEL,
            "seed": int(seed),
        },
    }


def rescore(
    nuclei: Nuclei,
    *,
    by: str = "p_positive",
    threshold: float | None = None,
    grade_cuts: Sequence[float] | None = None,
    **options: Unpack[Options],
) -> tuple[Nuclei, dict[str, Any]]:
    """Call and grade stored nuclei anew, and score them; nothing is segmented or classified again.

    Parameters
    ----------
    nuclei : as stored
    by : column that decides: ``p_positive`` or a feature such as ``dab_od_mean``
    threshold : a nucleus is positive where `by` is at or above it; None keeps the calls, by `p_positive` only
    grade_cuts : mean DAB optical density from which a nucleus is 1+, 2+, 3+; None keeps the grades
    options : as in `score`

    Returns
    -------
    nuclei, scores : the table with new `positive` and `grade`; the scores, with what was asked under ``rescored``,
        None for what was kept

    Raises
    ------
    ConfigError
        If the column is not stored, or a threshold or cut is missing or out of range.
    """
    if threshold is not None or by != "p_positive":
        nuclei = replace(nuclei, positive=_column(nuclei, by) >= _checked_threshold(by, threshold))
    if grade_cuts is not None:
        nuclei = replace(nuclei, grade=grades(_column(nuclei, "dab_od_mean"), grade_cuts))
    asked = {
        "by": by,
        "threshold": None if threshold is None else float(threshold),
        "grade_cuts": None if grade_cuts is None else [float(cut) for cut in grade_cuts],
    }
    scores = score(nuclei, **options)
    if by != "p_positive":
        column = _column(nuclei, by)
        steps = np.linspace(0, max(float(column.max(initial=0)), float(threshold or 0)), len(SENSITIVITY_P))
        scores["sensitivity"] = {"by": by, **sensitivity(column, steps.round(4))}
    return nuclei, {**scores, "rescored": asked}


def grades(dab_od: ArrayLike, cuts: Sequence[float] = GRADE_CUTS) -> NDArray[np.int8]:
    """Grade mean DAB optical densities (n,) as 0, 1, 2 or 3: the number of cuts at or below each.

    Raises
    ------
    ConfigError
        If there are not three increasing finite cuts.
    ContractViolation
        If a density is NaN.
    """
    limits = np.asarray(cuts, np.float64)
    if limits.shape != (3,) or not np.isfinite(limits).all() or (np.diff(limits) <= 0).any():
        raise ConfigError(
            "Grade cuts must be three increasing optical densities for 1+, 2+ and 3+, such as 0.2, 0.4, 0.6; "
            f"found {tuple(cuts)}."
        )
    return np.searchsorted(limits, _numbers(dab_od, "DAB optical density"), side="right").astype(np.int8)


def sensitivity(values: ArrayLike, thresholds: ArrayLike) -> dict[str, Any]:
    """Return percent positive as a function of the threshold, from one stored value per nucleus.

    Parameters
    ----------
    values : (n,), such as `p_positive` or mean DAB optical density
    thresholds : (k,), in any order; a nucleus is positive at or above

    Returns
    -------
    curve : lists of length k: ``threshold``, ``positive`` (counts), ``percent_positive`` (0..100, None without nuclei)
    """
    ordered = np.sort(_numbers(values, "value"))
    limits = np.asarray(thresholds, np.float64)
    if limits.ndim != 1 or limits.size == 0 or not np.isfinite(limits).all():
        raise ConfigError(f"Thresholds must be a list of at least one finite number; found {thresholds!r}.")
    positive = len(ordered) - np.searchsorted(ordered, limits, side="left")
    percent = (100 * positive / len(ordered)).tolist() if len(ordered) else [None] * len(limits)
    return {"threshold": limits.tolist(), "positive": positive.tolist(), "percent_positive": percent}


def _check_options(area_mm2: float, mpp: float, seed: int, bootstraps: int, block_um: float) -> None:
    for name, value in (("area_mm2", area_mm2), ("mpp", mpp), ("block_um", block_um)):
        if not (isinstance(value, int | float | np.number) and math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be a positive number; found {value!r}.")
    for name, number in (("seed", seed), ("bootstraps", bootstraps)):
        if not (isinstance(number, int | np.integer) and number >= 0):
            raise ConfigError(f"{name} must be an integer from 0; found {number!r}.")


def _checked_threshold(by: str, threshold: float | None) -> float:
    if threshold is None:
        raise ConfigError(f"Calling nuclei by {by!r} needs a threshold; none was given.\nPass --threshold.")
    if not math.isfinite(threshold) or (by == "p_positive" and not 0 <= threshold <= 1):
        allowed = "in [0, 1]" if by == "p_positive" else "finite"
        raise ConfigError(f"The threshold of {by!r} must be {allowed}; found {threshold}.")
    return threshold


def _column(nuclei: Nuclei, name: str) -> NDArray[np.float64]:
    stored = {"p_positive": nuclei.p_positive, **nuclei.features}
    if name not in stored:
        raise ConfigError(
            f"Nuclei have no stored column {name!r} to call by; there are {', '.join(stored)}.{nearest(name, stored)}"
        )
    return _numbers(stored[name], name)


def _numbers(values: ArrayLike, what: str) -> NDArray[np.float64]:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or np.isnan(found).any():
        raise ContractViolation(
            f"Expected one {what} per nucleus without NaN; found shape {found.shape} with {np.isnan(found).sum()} NaN."
        )
    return found


def _intensity_class(nuclei: Nuclei) -> NDArray[np.int64]:
    """Return the grade of positive nuclei, 1 at least, and 0 for negative ones."""
    grade = nuclei.grade.astype(np.int64)
    if ((grade < 0) | (grade > 3)).any():
        raise ContractViolation(f"Grades must be 0, 1, 2 or 3; found {np.unique(grade).tolist()}.")
    return np.where(nuclei.positive, np.maximum(grade, 1), 0)


def _statistics(counts: NDArray[np.int64], area_mm2: float) -> dict[str, NDArray[np.float64]]:
    """Return every score of nuclei per class, int64 (..., 4), as float64 (...); NaN where there are no nuclei."""
    none, weak, moderate, strong = np.moveaxis(counts, -1, 0)
    positive = weak + moderate + strong
    total = none + positive
    graded = weak + 2 * moderate + 3 * strong
    proportion = _allred_proportion(positive, total)
    # Half rounds up: a mean grade of 2.5 is strong.
    intensity = (2 * graded + positive) // np.maximum(2 * positive, 1)
    return {
        "counts.total": total,
        "counts.positive": positive,
        "counts.negative": none,
        **{f"counts.grade.{grade}": counts[..., grade] for grade in range(4)},
        "percent_positive": _ratio(100 * positive, total),
        "h_score": _ratio(100 * graded, total),
        "allred.proportion": np.where(total > 0, proportion, np.nan),
        "allred.intensity": np.where(total > 0, intensity, np.nan),
        "allred.total": np.where(total > 0, proportion + intensity, np.nan),
        "density_per_mm2.total": total / area_mm2,
        "density_per_mm2.positive": positive / area_mm2,
        "density_per_mm2.negative": none / area_mm2,
    }


def _allred_proportion(positive: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0 for none, 1 below 1/100, 2 to 1/10, 3 to 1/3, 4 to 2/3, 5 above; in integers, so that ties are exact."""
    steps = [100 * positive >= total, 10 * positive > total, 3 * positive > total, 3 * positive > 2 * total]
    return np.where(positive > 0, 1 + np.sum(steps, axis=0), 0)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _is_whole(name: str) -> bool:
    return name.startswith(("counts.", "allred."))


def _interval(draws: NDArray[np.float64], *, whole: bool) -> list[float | None] | None:
    known = draws[~np.isnan(draws)]
    if known.size == 0:
        return None
    # An observed value, so that the interval of a whole number is whole.
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return [_plain(low, whole=whole), _plain(high, whole=whole)]


def _plain(value: Any, *, whole: bool) -> float | None:
    if np.isnan(value):
        return None
    return int(value) if whole else float(value)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted names into nested dictionaries."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        branch = tree
        for step in path:
            branch = branch.setdefault(step, {})
        branch[last] = value
    return tree
