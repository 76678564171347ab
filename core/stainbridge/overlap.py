"""Overlaps of two label maps, counted once, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .assignment import greatest_gain, most_pairs
from .errors import ConfigError, ContractViolation

Ids: TypeAlias = NDArray[np.integer[Any]]
Pairs: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]

# Pixels at a time: what is made of them stays in the processor's cache and in memory that is at hand already.
_BLOCK_PX = 100_000


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

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair, float64 (k,), above 0 and up to 1."""
        return self.n_ij / self.union


def overlaps(truth: Ids, prediction: Ids) -> Overlaps:
    """Count shared pixels of two label maps (H, W) of non-negative integers, 0 background, gaps allowed.

    One pass over the pixels; memory grows with the pairs that touch, never with n x m nor with the ids.

    Raises
    ------
    ContractViolation
        If the maps differ in size or hold anything but non-negative integers.
    """
    _check(truth, prediction)
    t, p, px = _summed(*_joined([_summed(*runs) for runs in _runs(truth.ravel(), prediction.ravel())]))
    i, truth_px = _objects(t, px)
    j, prediction_px = _objects(p, px)
    shared = np.flatnonzero((t > 0) & (p > 0))
    return Overlaps(i[shared], j[shared], px[shared], truth_px, prediction_px)


def matched(found: Overlaps, threshold_pct: int, *, strict: bool = False) -> NDArray[np.int64]:
    """Return which pairs of the table match at IoU >= `threshold_pct` / 100, or > when `strict`, each object at most once.

    Above one half every such pair is unique. Up to it the largest number of pairs is taken and, among equals, the largest
    sum of IoU. IoU is compared as integers, so that a tie is one.

    Raises
    ------
    ConfigError
        If the threshold is not an integer from 1 to 100.
    """
    threshold = _checked(threshold_pct)
    share, whole = 100 * found.n_ij, threshold * found.union
    pairs = np.flatnonzero(share > whole if strict else share >= whole)
    if threshold > 50 or (strict and threshold == 50):
        return pairs
    return pairs[most_pairs(found.i[pairs], found.j[pairs], 1 - found.iou[pairs])]


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
    # The largest whole percentage that each pair reaches, and how many pairs reach at least so much.
    reached = np.bincount(100 * found.n_ij // found.union, minlength=101)
    tp = reached[::-1].cumsum()[::-1][thresholds]
    for index in np.flatnonzero(thresholds <= 50):
        tp[index] = len(matched(found, int(thresholds[index])))
    return np.stack([tp, len(found.prediction_px) - tp, len(found.truth_px) - tp], axis=1)


def dice_counts(found: Overlaps) -> tuple[int, int, int]:
    """Return foreground pixels in both maps, in truth, and in the prediction; Dice is 2 both / (truth + prediction)."""
    return int(found.n_ij.sum()), int(found.truth_px.sum()), int(found.prediction_px.sum())


def best_partners(found: Overlaps) -> NDArray[np.int64]:
    """Return the pair of greatest IoU of each truth object that touches any; a prediction may serve several (AJI).

    Of equals the first prediction is taken.
    """
    order: NDArray[np.int64] = np.lexsort((found.j, -found.iou, found.i))
    return order[_starts(found.i[order])]


def one_to_one(found: Overlaps) -> NDArray[np.int64]:
    """Return the pairs that use each object at most once and whose IoU sums highest, however small each is (AJI+)."""
    return greatest_gain(found.i, found.j, found.iou)


def jaccard_counts(found: Overlaps, pairs: NDArray[np.int64]) -> tuple[int, int]:
    """Return the intersections of `pairs`, and their unions with the area of every object in no pair; AJI is their ratio."""
    alone_t, alone_p = np.ones(len(found.truth_px), bool), np.ones(len(found.prediction_px), bool)
    alone_t[found.i[pairs]] = False
    alone_p[found.j[pairs]] = False
    alone = found.truth_px[alone_t].sum() + found.prediction_px[alone_p].sum()
    return int(found.n_ij[pairs].sum()), int(found.union[pairs].sum() + alone)


def _check(truth: Ids, prediction: Ids) -> None:
    for labels, what in ((truth, "truth"), (prediction, "prediction")):
        if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
            kind = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
            raise ContractViolation(
                f"{what}: labels must be an array of integers, 0 where there is no object; found {kind}."
            )
    if truth.shape != prediction.shape:
        raise ContractViolation(
            f"Truth {truth.shape} and prediction {prediction.shape} differ in size. "
            "Bring the prediction back to the grid of the truth first."
        )


def _checked(threshold_pct: int) -> int:
    if not isinstance(threshold_pct, int | np.integer) or not 1 <= threshold_pct <= 100:
        raise ConfigError(f"An IoU threshold is an integer in hundredths, 1 to 100; found {threshold_pct!r}.")
    return int(threshold_pct)


def _runs(truth: Ids, prediction: Ids) -> Iterator[tuple[Ids, Ids, NDArray[np.int64]]]:
    """Yield truth id, predicted id and length of every run of pixels that have both in common, block by block."""
    edge, other = np.empty(_BLOCK_PX + 1, bool), np.empty(_BLOCK_PX, bool)
    for start in range(0, truth.size, _BLOCK_PX):
        t, p = truth[start : start + _BLOCK_PX], prediction[start : start + _BLOCK_PX]
        changed, inner = edge[: t.size + 1], edge[1 : t.size]
        changed[0] = changed[-1] = True
        np.not_equal(t[1:], t[:-1], out=inner)
        np.logical_or(inner, np.not_equal(p[1:], p[:-1], out=other[: inner.size]), out=inner)
        at = np.flatnonzero(changed)
        first = at[:-1]
        yield _not_negative(t[first], "truth"), _not_negative(p[first], "prediction"), np.diff(at)


def _not_negative(ids: Ids, what: str) -> Ids:
    low = int(ids.min())
    if low < 0:
        raise ContractViolation(f"{what}: label ids must not be negative; found {low}. 0 is background.")
    return ids


def _joined(parts: list[Pairs]) -> Pairs:
    """Put the pairs of all blocks into one table."""
    if not parts:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64)
    t, p, px = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return t, p, px


def _summed(t: Ids, p: Ids, px: NDArray[np.int64]) -> Pairs:
    """Return the distinct pairs of ids, sorted, and the sum of the pixels of each."""
    if px.size == 0:
        return t.astype(np.uint64), p.astype(np.uint64), px
    bits_t, bits_p, bits_px = (int(values.max()).bit_length() for values in (t, p, px))
    if bits_t + bits_p + bits_px > 64:
        return _summed_wide(t.astype(np.uint64), p.astype(np.uint64), px)
    # One sort of ids and pixels in one number takes a fraction of the time of sorting an order and following it.
    word: Any = np.uint32 if bits_t + bits_p + bits_px <= 32 else np.uint64
    key = t.astype(word)
    for values, bits in ((p, bits_p), (px, bits_px)):
        key <<= word(bits)
        key |= values.astype(word)
    key.sort()
    weight = key & word((1 << bits_px) - 1)
    key >>= word(bits_px)
    first = _starts(key)
    key = key[first].astype(np.uint64)
    total = np.add.reduceat(weight, first, dtype=np.int64)
    return key >> np.uint64(bits_p), key & np.uint64((1 << bits_p) - 1), total


def _summed_wide(t: NDArray[np.uint64], p: NDArray[np.uint64], px: NDArray[np.int64]) -> Pairs:
    """Do the same where ids are so large that they do not fit into one number together."""
    order = np.lexsort((p, t))
    t, p = t[order], p[order]
    first = np.union1d(_starts(t), _starts(p))
    return t[first], p[first], np.add.reduceat(px[order], first)


def _starts(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return where each run of equal values begins."""
    new = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return np.flatnonzero(new)


def _objects(ids: NDArray[np.uint64], px: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the ids 0..n-1 in order, background -1; return the number of each entry, and the pixels by number."""
    values, number = np.unique(ids, return_inverse=True)
    background = int(values.size > 0 and values[0] == 0)
    # Sums of float64 weights are exact up to 2**53 pixels.
    area = np.bincount(number, weights=px, minlength=values.size).astype(np.int64)
    return number - background, area[background:]
