"""Trace the outlines of all labels of a window at once, exactly along the pixels' sides.

Each side of a pixel that faces another label is an edge, run so that its pixel lies on the right hand (y down). The
edge that follows is decided by two neighbours alone, so the links of all edges are found in a few array operations, and
only walking them is a loop. Pixels of one label that touch at a corner only are not joined, which makes the rings
simple: valid polygons, with holes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge.records import LabelMap

Ring: TypeAlias = NDArray[np.int64]
"""Corners (k, 2) as x, y; the last is the first. Exteriors have positive area (RFC 7946), holes negative."""

Polygon: TypeAlias = list[Ring]
"""The exterior, then the holes."""


def trace(block: LabelMap, wanted: NDArray[np.int32], origin: tuple[int, int] = (0, 0)) -> Mapping[int, list[Polygon]]:
    """Return the polygons of the labels `wanted`; a label in several pieces has several.

    Pixel (0, 0) covers the square from (0, 0) to (1, 1), as in QuPath: the pixels whose centres lie inside are exactly
    the label's.

    Parameters
    ----------
    block : int32 (H, W), holds the wanted labels whole
    wanted : ids; others are background
    origin : (y, x) of the block in the picture, added to the corners
    """
    padded = np.pad(block, 1)
    keep = np.zeros(int(padded.max()) + 1, bool)
    keep[wanted[wanted < len(keep)]] = True
    padded[~keep[padded]] = 0
    edges, following, turns, pinched = _link(padded.ravel(), padded.shape[1])
    if not len(edges):
        return {}
    order, starts = _walk(following)
    owners = padded.ravel()[edges[order[starts]] >> 2].tolist()
    rings = _closed(_corners(edges[order], padded.shape[1], origin), turns[order], starts)
    pinches = np.logical_or.reduceat(pinched[order], starts).tolist()
    found: dict[int, list[Ring]] = {}
    for label, ring, pinch in zip(owners, rings, pinches, strict=True):
        found.setdefault(label, []).extend(_simple(ring) if pinch else [ring])
    return {label: [parts] if len(parts) == 1 else _nest(parts) for label, parts in found.items()}


def _link(
    flat: NDArray[np.int32], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return edges as pixel * 4 + side, the index of the edge after each, where it turns, and where it pinches."""
    outward = np.array([-width, 1, width, -1])  # sides: top, right, bottom, left
    pixels = np.flatnonzero(flat)
    edges, following, turns, pinched = [], [], [], []
    for side in range(4):
        pixel = pixels[flat[pixels + outward[side]] != flat[pixels]]
        label, along = flat[pixel], outward[(side + 1) % 4]
        ahead, across = pixel + along, pixel + along + outward[side]
        same_ahead, same_across = flat[ahead] == label, flat[across] == label
        right, left, straight = pixel * 4 + (side + 1) % 4, across * 4 + (side + 3) % 4, ahead * 4 + side
        edges.append(pixel * 4 + side)
        following.append(np.where(~same_ahead, right, np.where(same_across, left, straight)))
        turns.append(~same_ahead | same_across)
        pinched.append(~same_ahead & same_across)
    keys = np.concatenate(edges)
    sort = np.argsort(keys)
    keys = keys[sort]
    after = np.searchsorted(keys, np.concatenate(following)[sort])
    return keys, after, np.concatenate(turns)[sort], np.concatenate(pinched)[sort]


def _walk(following: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Follow the links; return the edges ring after ring, and where each ring starts."""
    links = following.tolist()
    order: list[int] = []
    starts: list[int] = []
    for first in range(len(links)):
        if links[first] < 0:
            continue
        starts.append(len(order))
        edge = first
        while (after := links[edge]) >= 0:
            order.append(edge)
            links[edge] = -1
            edge = after
    return np.asarray(order, np.int64), np.asarray(starts, np.int64)


def _corners(edges: NDArray[np.int64], width: int, origin: tuple[int, int]) -> NDArray[np.int64]:
    """Return the (x, y) at which each edge ends, in the coordinates of the picture."""
    y, x = np.divmod(edges >> 2, width)
    side = edges & 3
    right, below = (side == 0) | (side == 1), (side == 1) | (side == 2)
    return np.stack([x + right + (origin[1] - 1), y + below + (origin[0] - 1)], axis=1)


def _closed(corners: NDArray[np.int64], turns: NDArray[np.bool_], starts: NDArray[np.int64]) -> list[Ring]:
    """Keep the corners at which a ring turns, and repeat the first of each ring at its end."""
    ends = np.cumsum(np.add.reduceat(turns, starts, dtype=np.int64))
    turning = corners[turns]
    firsts = np.concatenate([[0], ends[:-1]])
    return np.split(np.insert(turning, ends, turning[firsts], axis=0), (ends + np.arange(1, len(ends) + 1))[:-1])


def _simple(ring: Ring) -> list[Ring]:
    """Cut a ring that passes through a corner twice into rings that do not."""
    rings: list[Ring] = []
    path: list[tuple[int, int]] = []
    position: dict[tuple[int, int], int] = {}
    for x, y in ring.tolist():
        at = position.get((x, y))
        if at is not None:
            rings.append(np.array([*path[at:], (x, y)], np.int64))
            for gone in path[at:]:
                del position[gone]
            del path[at:]
        position[x, y] = len(path)
        path.append((x, y))
    return rings


def _nest(rings: list[Ring]) -> list[Polygon]:
    """Give each hole to the smallest exterior around it."""
    areas = [_area(ring) for ring in rings]
    smallest_first = sorted(range(len(rings)), key=lambda index: areas[index])
    exteriors = [[rings[index]] for index in smallest_first if areas[index] > 0]
    for ring, area in zip(rings, areas, strict=True):
        if area < 0:
            around = (
                polygon for polygon in exteriors if len(exteriors) == 1 or _inside(_pixel_beside(ring), polygon[0])
            )
            next(around).append(ring)
    return exteriors


def _area(ring: Ring) -> float:
    x, y = ring.T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def _pixel_beside(ring: Ring) -> tuple[float, float]:
    """Return the centre (x, y) of the label's own pixel beside the first side of a ring."""
    (x, y), (step_x, step_y) = ring[0], np.sign(ring[1] - ring[0])
    return float(x + (step_x - step_y) / 2), float(y + (step_y + step_x) / 2)


def _inside(point: tuple[float, float], ring: Ring) -> bool:
    """Even-odd test along a row: only the vertical sides of the ring can be crossed."""
    x, y = point
    upright = (ring[:-1, 0] == ring[1:, 0]) & (ring[:-1, 0] > x)
    low, high = np.minimum(ring[:-1, 1], ring[1:, 1]), np.maximum(ring[:-1, 1], ring[1:, 1])
    return int((upright & (low < y) & (y < high)).sum()) % 2 == 1
