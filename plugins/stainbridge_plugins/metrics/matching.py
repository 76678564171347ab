"""Overlaps of two label maps, counted once, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import ConfigError, ContractViolation

Ids: TypeAlias = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Overlaps:
    """Every pair of a truth and a predicted object that share a pixel.

    Objects are numbered from 0 in the order of their ids, so that gaps in the ids leave no trace.

    Parameters
    ----------
    i, j : int64 (k,), truth and predicted object of each pair, sorted by i, then j
    n_ij : int64 (k,), shared pixels
    truth_px, prediction_px : int64 (n,) and (m,), area of each object in pixels
    """

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    n_ij: NDArray[np.int64]
    truth_px: NDArray[np.int64]
    prediction_px: NDArray[np.int64]

    @property
    def union(self) -> NDArray[np.int64]:
        """Pixels in either object of each pair, int64 (k,)."""
        return self.truth_px[self.i] + self.prediction_px[self.j] - self.n_ij


def overlaps(truth: Ids, prediction: Ids) -> Overlaps:
    """Count shared pixels of two label maps (H, W) of non-negative integers, 0 background, gaps allowed.

    One pass over the pixels; memory grows with the pairs that touch, never with n x m.

    Raises
    ------
    ContractViolation
        If the maps differ in size or hold anything but non-negative integers.
    """
    _check(truth, prediction)
    t, p = truth.ravel(), prediction.ravel()
    edges = _run_edges(t, p)
    starts, length = edges[:-1], np.diff(edges)
    t, p = _bounded(t[starts], t.size, "truth"), _bounded(p[starts], p.size, "prediction")
    # Sums of float64 weights are exact up to 2**53 pixels.
    weight = length.astype(np.float64)
    number_i, truth_px = _objects(t, weight)
    number_j, prediction_px = _objects(p, weight)
    shared = np.flatnonzero((t > 0) & (p > 0))
    key, n_ij = sum_by_key(t[shared] * len(number_j) + p[shared], length[shared])
    rows, columns = np.divmod(key, len(number_j))
    return Overlaps(number_i[rows], number_j[columns], n_ij, truth_px, prediction_px)


def matched(found: Overlaps, threshold_pct: int) -> NDArray[np.int64]:
    """Return which pairs of the table match at IoU >= `threshold_pct` / 100, each object at most once.

    Above 50 every pair at the threshold is unique. Up to 50 the largest number of pairs is taken and, among equals, the
    largest sum of IoU: an optimal assignment in each group of competing pairs. IoU is compared as integers, so that a
    tie is a match.
    """
    pairs = np.flatnonzero(_reaches(found, np.array([_checked(threshold_pct)]))[:, 0])
    if threshold_pct > 50:
        return pairs
    return _assign(found, pairs)


def match_counts(found: Overlaps, thresholds_pct: Sequence[int]) -> NDArray[np.int64]:
    """Count true positives, false positives and false negatives at each IoU threshold, given in hundredths (1..100).

    Returns
    -------
    counts : int64 (T, 3), columns tp, fp, fn

    Raises
    ------
    ConfigError
        If a threshold is not an integer from 1 to 100.
    """
    thresholds = np.array([_checked(value) for value in thresholds_pct], np.int64)
    tp = np.count_nonzero(_reaches(found, thresholds), axis=0)
    for index in np.flatnonzero(thresholds <= 50):
        tp[index] = len(matched(found, int(thresholds[index])))
    return np.stack([tp, len(found.prediction_px) - tp, len(found.truth_px) - tp], axis=1)


def dice_counts(found: Overlaps) -> tuple[int, int, int]:
    """Return foreground pixels in both maps, in truth, and in the prediction; Dice is 2 both / (truth + prediction)."""
    return int(found.n_ij.sum()), int(found.truth_px.sum()), int(found.prediction_px.sum())


def _check(truth: Ids, prediction: Ids) -> None:
    for labels, what in ((truth, "truth"), (prediction, "prediction")):
        if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
            kind = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
            raise ContractViolation(f"{what}: labels must be an array of integers; found {kind}.")
    if truth.shape != prediction.shape:
        raise ContractViolation(f"Truth {truth.shape} and prediction {prediction.shape} differ in size.")


def _checked(threshold_pct: int) -> int:
    if not isinstance(threshold_pct, int | np.integer) or not 1 <= threshold_pct <= 100:
        raise ConfigError(f"An IoU threshold is an integer in hundredths, 1 to 100; found {threshold_pct!r}.")
    return int(threshold_pct)


def _run_edges(t: Ids, p: Ids) -> NDArray[np.int64]:
    """Return where a run of equal (truth, prediction) begins, and at last the number of pixels."""
    edge = np.ones(t.size + 1, bool)
    np.not_equal(t[1:], t[:-1], out=edge[1:-1])
    edge[1:-1] |= p[1:] != p[:-1]
    return np.flatnonzero(edge)


def _bounded(ids: Ids, size: int, what: str) -> NDArray[np.int64]:
    """Refuse negative ids, and replace ids so large that a table by id would outgrow the picture."""
    if ids.size == 0:
        return ids.astype(np.int64)
    low, high = int(ids.min()), int(ids.max())
    if low < 0:
        raise ContractViolation(f"{what}: label ids must not be negative; found {low}.")
    if high <= min(size, 2**31 - 1):
        return ids.astype(np.int64)
    values, order = np.unique(ids, return_inverse=True)
    return order + int(values[0] > 0)


def _objects(ids: NDArray[np.int64], length: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the ids of the runs 0..n-1 in order; return the number by id, or -1, and the pixels by number."""
    area = np.bincount(ids, weights=length, minlength=1).astype(np.int64)
    present = area > 0
    present[0] = False
    return np.where(present, np.cumsum(present) - 1, -1), area[present]


def sum_by_key(key: NDArray[np.int64], weight: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct keys in order, and the sum of the weights of each."""
    if key.size == 0:
        return key, weight
    bits = int(weight.max()).bit_length()
    if int(key.max()).bit_length() + bits < 63:
        # One sort of both in one number takes half the time of sorting an order and following it.
        packed = np.sort(key << bits | weight)
        key, weight = packed >> bits, packed & (1 << bits) - 1
    else:
        order = np.argsort(key, kind="stable")
        key, weight = key[order], weight[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    return key[first], np.add.reduceat(weight, first)


def _reaches(found: Overlaps, thresholds_pct: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return bool (k, T): IoU of the pair at or above the threshold, in integers."""
    return 100 * found.n_ij[:, None] >= thresholds_pct * found.union[:, None]


def _assign(found: Overlaps, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose among competing pairs."""
    i, j = found.i[pairs], found.j[pairs]
    alone = (np.bincount(i, minlength=1)[i] == 1) & (np.bincount(j, minlength=1)[j] == 1)
    if alone.all():
        return pairs

    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rest = pairs[~alone]
    n, m = len(found.truth_px), len(found.prediction_px)
    graph = coo_array((np.ones(len(rest), bool), (found.i[rest], n + found.j[rest])), shape=(n + m, n + m))
    _, group = connected_components(graph, directed=False)
    group = group[found.i[rest]]
    order = np.argsort(group, kind="stable")
    groups = np.split(rest[order], np.flatnonzero(np.diff(group[order])) + 1)
    return np.sort(np.concatenate([pairs[alone], *(_assign_group(found, members) for members in groups)]))


def _assign_group(found: Overlaps, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose the most pairs, then the largest sum of IoU, in one group."""
    from scipy.optimize import linear_sum_assignment

    rows, i = np.unique(found.i[pairs], return_inverse=True)
    columns, j = np.unique(found.j[pairs], return_inverse=True)
    iou = found.n_ij[pairs] / found.union[pairs]
    gain = np.zeros((len(rows), len(columns)))
    # The IoU of all chosen pairs together stays below one pair's worth.
    gain[i, j] = 1 + iou / (2 * min(gain.shape))
    position = np.full(gain.shape, -1)
    position[i, j] = pairs
    chosen: NDArray[np.int64] = position[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen >= 0]
