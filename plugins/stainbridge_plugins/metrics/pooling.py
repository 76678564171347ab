"""Sums, means and ratios over pictures that may each count several times; what is not defined is NaN and left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Columns: TypeAlias = Mapping[str, NDArray[np.float64]]
"""Values of n pictures by name, float64 (n,)."""

Weights: TypeAlias = NDArray[np.float64]
"""How often each picture counts in each drawing, float64 (B, n)."""

Pool: TypeAlias = Callable[[Columns, Weights], dict[str, NDArray[np.float64]]]

RATES = ("accuracy", "precision", "recall", "f1")


class Tally:
    """The values of the pictures seen so far.

    Parameters
    ----------
    names : of the values of a picture
    pool : of the metric
    """

    def __init__(self, names: Sequence[str], pool: Pool) -> None:
        self.names, self._pool = tuple(names), pool
        self._rows: list[dict[str, float]] = []

    def add(self, row: Mapping[str, float]) -> dict[str, float]:
        """Keep the values of one picture and return them."""
        self._rows.append({name: float(row[name]) for name in self.names})
        return dict(self._rows[-1])

    def compute(self) -> dict[str, float]:
        """Return the values pooled over all pictures, each counted once."""
        images = {name: np.array([row[name] for row in self._rows], np.float64) for name in self.names}
        pooled = self._pool(images, np.ones((1, len(self._rows))))
        return {name: float(values[0]) for name, values in pooled.items()}


def total(column: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
    """Return the weighted sum of what is defined, (B,)."""
    return weights @ np.nan_to_num(column)


def mean(column: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
    """Return the weighted mean of what is defined, (B,); NaN where nothing is."""
    return ratio(total(column, weights), weights @ np.isfinite(column).astype(np.float64))


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the quotient, NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), math.nan), where=below != 0)


def rates(tp: NDArray[np.float64], fp: NDArray[np.float64], fn: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return accuracy, precision, recall and f1, each 0..1; 0 where tp is 0; NaN where there is no object at all."""
    below = (tp + fp + fn, tp + fp, tp + fn, tp + (fp + fn) / 2)
    anything = tp + fp + fn > 0
    found = (np.where(anything & (tp == 0), 0.0, ratio(tp, one)) for one in below)
    return dict(zip(RATES, found, strict=True))


def images_seen(weights: Weights, empty: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Return how many pictures count, and how many of them have neither truth nor prediction."""
    return {"images": weights.sum(axis=1), "images_empty": weights @ empty.astype(np.float64)}
