"""Cells as a post-processing finds them, and what the pixels below any labels tell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge import LabelMap

Mask: TypeAlias = NDArray[np.bool_]
Reading: TypeAlias = Literal["interior", "interior+outline", "refined"]
"""What of a cell is its nucleus: as it is counted, with its outline, or the fragments that lines drawn by 1.1.2 leave of it."""

POSITIVE_FROM = 0.5
"""A cell is positive where at least half of its counted pixels are."""


@dataclass(frozen=True)
class Cells:
    """The cells of one picture.

    Parameters
    ----------
    labels : int32 (H, W), ids 1..n in the order of their first pixels
    p_positive : float64 (n,), share of the positive among the positive and negative pixels; at least one half exactly where the
        program calls the cell positive
    size_px : the size above which components are cells, where it was derived from the sizes
    counted : int32 (H, W), the same ids over the pixels that were counted; None where these are the labels
    """

    labels: LabelMap
    p_positive: NDArray[np.float64]
    size_px: int | None = None
    counted: LabelMap | None = None

    @property
    def positive(self) -> Mask:
        """Which cells are called positive, bool (n,)."""
        return self.p_positive >= POSITIVE_FROM

    def over(self, labels: LabelMap) -> Cells:
        """Return the same cells with other outlines."""
        return replace(self, labels=labels, counted=self.labels)

    def brightest(self, picture: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the largest value of uint8 (H, W) among the counted pixels of each cell, float64 (n,)."""
        return brightest(self.labels if self.counted is None else self.counted, picture, len(self.p_positive))

    def kept(self, keep: Mask) -> Cells:
        """Return the cells of which `keep`, bool (n,), is true, numbered anew."""
        return replace(self, labels=renumbered(self.labels, keep), p_positive=self.p_positive[keep])


def components(mask: Mask) -> tuple[LabelMap, int]:
    """Return the 8-connected components of bool (H, W) as int32 (H, W), in the order of their first pixels, and their number."""
    from scipy.ndimage import label

    labels = np.zeros(mask.shape, np.int32)
    return labels, int(label(mask, np.ones((3, 3)), output=labels))


def first_pixels(labels: LabelMap, count: int) -> NDArray[np.int64]:
    """Return the index in `labels.ravel()` of the first pixel of each label 1..count, int64 (count,)."""
    pixels = np.flatnonzero(labels)[::-1]
    first = np.zeros(count + 1, np.int64)
    first[labels.ravel()[pixels]] = pixels
    return first[1:]


def renumbered(labels: LabelMap, keep: Mask) -> LabelMap:
    """Return the labels 1..n of which `keep`, bool (n,), is true, without gaps."""
    ids = np.concatenate([np.zeros(1, np.int32), np.cumsum(keep) * keep]).astype(np.int32)
    return ids[labels]


def tally(labels: LabelMap, of: Mask, count: int) -> NDArray[np.int64]:
    """Return how many pixels of bool (H, W) each label 1..count holds, int64 (count,)."""
    return np.bincount(labels[of], minlength=count + 1)[1:]


def brightest(labels: LabelMap, picture: NDArray[np.uint8], count: int) -> NDArray[np.float64]:
    """Return the largest value of uint8 (H, W) below each label 1..count, float64 (count,)."""
    values, inside = np.zeros(count), labels > 0
    np.maximum.at(values, labels[inside] - 1, picture[inside])
    return values


def shares(positive: NDArray[np.int64], negative: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of positive pixels, float64 (n,); 0 where there are no pixels of either kind."""
    return positive / np.maximum(positive + negative, 1)
