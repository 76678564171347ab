"""What HoVer-Net tells about each nucleus: box, centroid, contour and type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stainbridge import LabelMap

from .postprocessing import require_cv2
from .runs import Runs, runs_of


@dataclass(frozen=True)
class NucleusTable:
    """The nuclei of one picture, in the order of their ids; those whose contour has less than 3 points are left out.

    Parameters
    ----------
    ids : int32 (n,), the ids in the label map
    boxes : int32 (n, 4): top, left, bottom, right in pixels, the last two exclusive
    centroids : float64 (n, 2): x, y in pixels, 0 being the middle of the first
    contours : n outlines int32 (k, 2): x, y of their corners
    types : uint8 (n,), 0 where nothing but background was seen; None from a network without types
    shares : float64 (n,), the part of a nucleus's pixels that have its type, 0..1; None from a network without types
    """

    ids: NDArray[np.int32]
    boxes: NDArray[np.int32]
    centroids: NDArray[np.float64]
    contours: tuple[NDArray[np.int32], ...]
    types: NDArray[np.uint8] | None = None
    shares: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def measure(labels: LabelMap, types: NDArray[np.uint8] | None = None) -> NucleusTable:
    """Measure the nuclei of int32 (H, W), ids 0..n without gaps.

    Parameters
    ----------
    labels : the nuclei
    types : uint8 (H, W), the type of each pixel, 0 for background

    Raises
    ------
    MissingExtra
        If OpenCV is missing.
    """
    width = 1 if types is None else int(types.max(initial=0)) + 1
    runs = runs_of(labels if types is None else np.where(labels > 0, labels * np.int32(width) + types, 0))
    ids = runs.value // width
    count = int(ids.max(initial=0))
    y, x = np.divmod(runs.first, labels.shape[1])
    boxes = _boxes(runs, ids, y, x, count)
    contours = _contours(labels, boxes)
    votes, areas = _votes(runs, count, width)
    chosen, shares = (None, None) if types is None else _majority(votes, areas)
    kept = np.array([len(one) >= 3 for one in contours], bool)
    return NucleusTable(
        ids=np.flatnonzero(kept).astype(np.int32) + 1,
        boxes=boxes[kept],
        centroids=_centroids(runs, ids, y, x, areas, boxes)[kept],
        contours=tuple(one for one, keep in zip(contours, kept, strict=True) if keep),
        types=None if chosen is None else chosen[kept],
        shares=None if shares is None else shares[kept],
    )


def types_of(labels: LabelMap, types: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the type of each nucleus of int32 (H, W), uint8 (n,), and its share of the pixels, float64 (n,); `types` as for `measure`."""
    width = int(types.max(initial=0)) + 1
    runs = runs_of(np.where(labels > 0, labels * np.int32(width) + types, 0))
    count = int(labels.max(initial=0))
    return _majority(*_votes(runs, count, width))


def _votes(runs: Runs, count: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pixels of each type (n, types), and all pixels (n,), of runs of id * width + type."""
    votes = np.bincount(runs.value, runs.length, (count + 1) * width).reshape(-1, width)[1:]
    return votes, votes.sum(axis=1)


def _boxes(
    runs: Runs, ids: NDArray[np.int32], y: NDArray[np.intp], x: NDArray[np.intp], count: int
) -> NDArray[np.int32]:
    boxes = np.zeros((count + 1, 4), np.int32)
    # Runs come from the top down, so the last that is written is the one.
    boxes[ids[::-1], 0] = y[::-1]
    boxes[ids, 2] = y + 1
    boxes[:, 1] = np.iinfo(np.int32).max
    np.minimum.at(boxes[:, 1], ids, x.astype(np.int32))
    np.maximum.at(boxes[:, 3], ids, (x + runs.length).astype(np.int32))
    return boxes[1:]


def _centroids(
    runs: Runs,
    ids: NDArray[np.int32],
    y: NDArray[np.intp],
    x: NDArray[np.intp],
    areas: NDArray[np.float64],
    boxes: NDArray[np.int32],
) -> NDArray[np.float64]:
    """Return the mean x and y of each id, float64 (n, 2)."""
    means = []
    for middle, start in ((x + (runs.length - 1) / 2, boxes[:, 1]), (y, boxes[:, 0])):
        total = np.bincount(ids, runs.length * middle, len(areas) + 1)[1:]
        # Relative to the box first, as moments of the box are: the same digits as the original's.
        means.append((total - areas * start) / areas + start)
    return np.stack(means, axis=1)


def _contours(labels: LabelMap, boxes: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    cv2 = require_cv2()
    contours = []
    for label, (top, left, bottom, right) in enumerate(boxes.tolist(), start=1):
        mask = (labels[top:bottom, left:right] == label).view(np.uint8)
        found, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
        contours.append(found[0][:, 0])
    return contours


def _majority(votes: NDArray[np.float64], areas: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the type with most of the votes (n, types), background only where there is no other, and its share."""
    chosen = votes.argmax(axis=1)
    others = votes.copy()
    others[:, 0] = 0
    second = (chosen == 0) & others.any(axis=1)
    chosen[second] = others[second].argmax(axis=1)
    return chosen.astype(np.uint8), votes[np.arange(len(votes)), chosen] / (areas + 1e-6)
