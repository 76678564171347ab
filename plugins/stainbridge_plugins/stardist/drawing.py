"""Draw star-convex polygons into a label map: the pixels of stardist's `polygons_to_label`, many polygons at a time.

A pixel belongs to a polygon by the rule of scikit-image's `polygon`: a ray to its left or to its right crosses an odd
number of edges, so that the outline itself is inside. Instead of asking every pixel of the bounding box about every
edge, each edge marks in each row where the answer changes; from one mark to the next goes a run of pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stainbridge import LabelMap

_AT_ONCE = 1024  # polygons: keeps what is made for them small beside the picture
_DOUBTFUL = 1e-6  # pixels between a crossing and a pixel's centre below which rounding decides
_SAME = 1e-12  # a vertex this near a pixel's centre is on it

Reals = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class _Boxes:
    """The pixels around each polygon, numbered row by row and polygon by polygon, with one more number behind each row."""

    top: Integers
    left: Integers
    height: Integers
    width: Integers

    @property
    def stride(self) -> Integers:
        """Numbers per row."""
        return self.width + 1

    @property
    def start(self) -> Integers:
        """The first number of each polygon, and the one behind the last."""
        return np.concatenate([[0], np.cumsum(self.height * self.stride)])


def draw(
    dist: NDArray[np.float32], points: NDArray[np.int64], prob: NDArray[np.float32], shape: tuple[int, int]
) -> LabelMap:
    """Return int32 `shape`; polygon i has the id i + 1, and the more probable lies on top.

    Parameters
    ----------
    dist : float32 (n, rays), finite
    points : int (n, 2), y and x of the centres
    prob : (n,)
    """
    from stardist.geometry import dist_to_coord

    labels = np.zeros(shape, np.int32)
    order = np.argsort(prob, kind="stable")
    corners = dist_to_coord(dist[order], points[order]).astype(np.float64)
    for first in range(0, len(order), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        start, length, owner = _runs(corners[part], shape)
        labels.reshape(-1)[_each(start, length)] = np.repeat(order[part][owner] + 1, length)
    return labels


def _runs(corners: Reals, shape: tuple[int, int]) -> tuple[Integers, Integers, Integers]:
    """Return runs of pixels that fill polygons float64 (n, 2, rays), polygon by polygon, and whose each is.

    A run is a flat index of the picture and a number of pixels.
    """
    boxes = _boxes(corners, shape)
    right, left = (np.sort(places).reshape(-1, 2) for places in _changes(corners, boxes))
    place = np.minimum(np.searchsorted(right[:, 0], left[:, 0]), max(0, len(right) - 1))
    only_left = left[(right[place] != left).any(axis=1)] if len(right) else left
    vertex = _vertices(corners, boxes)[:, None] + np.array([0, 1])
    runs = np.concatenate([right, only_left, vertex])
    runs = runs[np.argsort(runs[:, 0])]
    owner = np.searchsorted(boxes.start, runs[:, 0], side="right") - 1
    row, column = np.divmod(runs[:, 0] - boxes.start[owner], boxes.stride[owner])
    return (row + boxes.top[owner]) * shape[1] + column + boxes.left[owner], runs[:, 1] - runs[:, 0], owner


def _each(start: Integers, length: Integers) -> Integers:
    """Return every index of the runs, one run after the other."""
    return np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum())


def _boxes(corners: Reals, shape: tuple[int, int]) -> _Boxes:
    low = np.maximum(0, corners.min(axis=2)).astype(np.int64)
    high = np.minimum(np.array(shape) - 1, np.ceil(corners.max(axis=2)).astype(np.int64))
    sides = np.maximum(0, high - low + 1)
    return _Boxes(low[:, 0], low[:, 1], sides[:, 0], sides[:, 1])


def _changes(corners: Reals, boxes: _Boxes) -> Iterator[Integers]:
    """Yield the numbers of the pixels at which the count of edges to the right becomes another, then of those to the left.

    Both change an even number of times per row: sorted, each two begin and end a run.
    """
    polygon, row, (y0, x0), (y1, x1) = _edges_by_row(corners, boxes)
    y0, y1 = y0 - row, y1 - row
    base = boxes.start[polygon] + (row - boxes.top[polygon]) * boxes.stride[polygon]
    for crossing, to_right in (((y0 > 0) != (y1 > 0), True), ((y0 < 0) != (y1 < 0), False)):
        a, b, c, d = (one[crossing] for one in (y0, x0, y1, x1))
        column = _first_behind(a, b, c, d, to_right=to_right) - boxes.left[polygon[crossing]]
        yield base[crossing] + np.clip(column, 0, boxes.width[polygon[crossing]])


def _edges_by_row(corners: Reals, boxes: _Boxes) -> tuple[Integers, Integers, tuple[Reals, Reals], tuple[Reals, Reals]]:
    """Return polygon, row and both ends (y, x) of each edge, once for every row of the box that it touches."""
    before = np.roll(corners, 1, axis=2)
    low = np.ceil(np.minimum(corners[:, 0], before[:, 0])).astype(np.int64)
    high = np.floor(np.maximum(corners[:, 0], before[:, 0])).astype(np.int64)
    low = np.maximum(low, boxes.top[:, None])
    high = np.minimum(high, (boxes.top + boxes.height - 1)[:, None])
    count = np.maximum(0, np.where(boxes.width[:, None] > 0, high - low + 1, 0)).reshape(-1)
    edge = np.repeat(np.arange(count.size), count)
    row = low.reshape(-1)[edge] + np.arange(edge.size) - np.repeat(np.cumsum(count) - count, count)
    polygon, ray = np.divmod(edge, corners.shape[2])
    this, last = ((one[polygon, 0, ray], one[polygon, 1, ray]) for one in (corners, before))
    return polygon, row, this, last


def _first_behind(y0: Reals, x0: Reals, y1: Reals, x1: Reals, *, to_right: bool) -> Integers:
    """Return the first column that no longer has the crossing to its right, or that first has it to its left.

    The ends of the edge are given with y relative to the row.
    """
    cross = (x0 * y1 - x1 * y0) / (y1 - y0)
    column: Integers = (np.ceil(cross) if to_right else np.floor(cross) + 1).astype(np.int64)
    near = np.rint(cross)
    doubtful = np.abs(cross - near) < _DOUBTFUL
    # Here it is computed as scikit-image does, with the pixel at the origin, to be rounded alike.
    near, y0, y1 = near[doubtful], y0[doubtful], y1[doubtful]
    a, b = x0[doubtful] - near, x1[doubtful] - near
    offset = (a * y1 - b * y0) / (y1 - y0)
    column[doubtful] = near.astype(np.int64) + ((offset > 0) if to_right else ~(offset < 0))
    return column


def _vertices(corners: Reals, boxes: _Boxes) -> Integers:
    """Return the numbers of the pixels on which a vertex lies."""
    nearest = np.rint(corners)
    on = (np.abs(corners - nearest) < _SAME).all(axis=1)
    polygon, ray = np.nonzero(on)
    row = nearest[polygon, 0, ray].astype(np.int64) - boxes.top[polygon]
    column = nearest[polygon, 1, ray].astype(np.int64) - boxes.left[polygon]
    there = (row >= 0) & (row < boxes.height[polygon]) & (column >= 0) & (column < boxes.width[polygon])
    number: Integers = (boxes.start[polygon] + row * boxes.stride[polygon] + column)[there]
    return number
