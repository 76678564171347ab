"""Bootstrap over pictures: how far a pooled value would move had other pictures been drawn.

Pictures are drawn, never nuclei or pixels: nuclei of one picture are alike, and counting them as independent makes an interval far too
narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .capabilities import Poolable
from .errors import ConfigError, ContractViolation

Columns: TypeAlias = Mapping[str, NDArray[np.float64]]
"""Values of n pictures by name, float64 (n,)."""

DRAWINGS = 2000
LEAST_DEFINED = 0.9
"""Share of drawings in which a value must be defined; two pictures with the value are in 86 % of drawings, three in 95 %."""


def drawings(n_images: int, times: int, seed: int) -> NDArray[np.float64]:
    """Draw n of n pictures with replacement, `times` over.

    Returns
    -------
    float64 (times, n), how often each picture was drawn; each row sums to n. The same for the same (seed, n).
    """
    if n_images < 1 or times < 1 or seed < 0:
        raise ConfigError(
            f"A bootstrap needs at least 1 picture, 1 drawing and a seed of at least 0; found {n_images}, {times} and {seed}."
        )
    rng = np.random.default_rng((seed, n_images))
    return rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=times).astype(np.float64)


def intervals(pooled: Columns, level: float = 0.95, *, images: int | None = None) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of each value.

    With few pictures plain percentiles are too narrow, by sqrt((n - 1) / n) and by the difference of the normal and Student's t;
    `images` widens them by both. Simulated means with 95 %: plain and widened hold the truth in 84 and 92 % (n = 5), 87 and 93 % (8),
    92 and 94 % (20) of cases for normal values; 79 and 88 %, 85 and 91 %, 89 and 92 % for exponential ones. Below some ten pictures
    read an interval as too narrow still: nothing in five pictures shows the tail that they lack.

    Parameters
    ----------
    pooled : float64 (B,) by name, one value per drawing
    level : in (0, 1)
    images : n, how many pictures were drawn from; None for plain percentiles

    Returns
    -------
    (low, high) by name, over the drawings in which the value is finite; (nan, nan) where those are fewer than 90 %, as when only one or
    two pictures have the value, or where `images` is below 2. Source: Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13
    (1993); the wider percentiles from Hesterberg, Am Stat 69:371 (2015).
    """
    if not 0 < level < 1:
        raise ConfigError(f"The level of an interval lies between 0 and 1; found {level!r}.")
    if images is not None and images < 2:
        return dict.fromkeys(pooled, (math.nan, math.nan))
    tail = _tail(level, images)
    return {name: _interval(np.asarray(values, np.float64), tail) for name, values in pooled.items()}


def score_intervals(
    metric: Poolable, images: Columns, *, times: int = DRAWINGS, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return the interval of each pooled value of `metric`, by the names of `Metric.compute`.

    Parameters
    ----------
    images : values of n pictures as `update` returned them; their order does not matter
    times : drawings
    seed : one seed gives the same drawings for the same number of pictures

    Returns
    -------
    (low, high) by name; see `intervals` for few pictures; (nan, nan) for fewer than two
    """
    n = _count(images)
    if n == 0:
        return {}
    in_order = _taken(images, _canonical(images))
    return intervals(metric.pool(in_order, drawings(n, times, seed)), level, images=n)


def paired_difference(
    metric: Poolable,
    images_a: Columns,
    images_b: Columns,
    *,
    times: int = DRAWINGS,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float, float]]:
    """Return value of a minus value of b with its interval: both are pooled over the same drawn pictures.

    What is hard about a picture is hard for both methods and falls out of the difference, so this interval is narrower than those of
    the two values suggest.

    Parameters
    ----------
    images_a, images_b : values of the pictures that both methods finished, row by row the same picture

    Returns
    -------
    (difference, low, high) by name, for values that both have; the interval is (nan, nan) for fewer than two pictures

    Raises
    ------
    ContractViolation
        If the numbers of pictures differ.
    """
    n, other = _count(images_a), _count(images_b)
    if n != other:
        raise ContractViolation(f"A paired comparison needs the same pictures on both sides; found {n} and {other}.")
    if n == 0:
        return {}
    order = _canonical({f"a {k}": v for k, v in images_a.items()} | {f"b {k}": v for k, v in images_b.items()})
    # The first row is the sample itself.
    weights = np.vstack([np.ones((1, n)), drawings(n, times, seed)])
    a, b = metric.pool(_taken(images_a, order), weights), metric.pool(_taken(images_b, order), weights)
    difference = {name: _minus(a[name], b[name]) for name in a if name in b}
    spread = intervals({name: values[1:] for name, values in difference.items()}, level, images=n)
    return {name: (float(values[0]), *spread[name]) for name, values in difference.items()}


def _tail(level: float, images: int | None) -> float:
    """Return the share that is cut off on each side."""
    tail = (1 - level) / 2
    if images is None:
        return tail
    from scipy.special import ndtr, stdtrit

    return float(ndtr(stdtrit(images - 1, tail) * math.sqrt(images / (images - 1))))


def _interval(values: NDArray[np.float64], tail: float) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if finite.size == 0 or finite.size < LEAST_DEFINED * values.size:
        return math.nan, math.nan
    low, high = np.quantile(finite, (tail, 1 - tail))
    return float(low), float(high)


def _minus(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = np.isfinite(a) & np.isfinite(b)
    return np.subtract(a, b, out=np.full(np.shape(a), math.nan), where=finite)


def _count(images: Columns) -> int:
    lengths = {len(column) for column in images.values()}
    if len(lengths) > 1:
        raise ContractViolation(f"Columns of pictures must have one length; found {sorted(lengths)}.")
    return lengths.pop() if lengths else 0


def _canonical(images: Columns) -> NDArray[np.intp]:
    """Return an order of the pictures that follows from their values: those that tie are alike."""
    order: NDArray[np.intp] = np.lexsort([images[name] for name in sorted(images)])
    return order


def _taken(images: Columns, order: NDArray[np.intp]) -> dict[str, NDArray[np.float64]]:
    return {name: np.asarray(column, np.float64)[order] for name, column in images.items()}
