"""Cut a mask into nuclei: of all level sets of a relief, keep the disjoint ones that look most like ellipses.

Every decision about an object uses only the objects nested with it, and objects beyond `Shape.longest_px` are never chosen, so that a
tile decides as the whole picture does about everything farther from its border than that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from stainbridge import LabelMap

_EIGHT = np.ones((3, 3), bool)
# Two equal touching discs have 0.89 of the area of their common ellipse, a disc or an ellipse has 1.
_LEAST_ELLIPTIC = 0.8
_ELLIPTIC_POWER = 3


@dataclass(frozen=True)
class Shape:
    """What may be a nucleus.

    Parameters
    ----------
    least_px, most_px : area in pixels
    longest_px : longest side of the bounding box in pixels
    hole_px : holes up to this many pixels belong to the object
    """

    least_px: float
    most_px: float
    longest_px: float
    hole_px: float


@dataclass(frozen=True)
class _Level:
    """Components of one level set: labels, a pixel of each, its area and how good a nucleus each would be."""

    labels: NDArray[np.int32]
    pixel: NDArray[np.int64]
    area: NDArray[np.float64]
    quality: NDArray[np.float64]


def best_components(relief: NDArray[np.float32], mask: NDArray[np.bool_], steps: NDArray[np.float64], shape: Shape) -> LabelMap:
    """Return the best disjoint components of the sets `mask & (relief > step)`, int32 (H, W), ids 0..n.

    A component gives way to those inside it when their mean quality, weighted by area, is higher.
    """
    levels = _levels(relief, mask, steps, shape)
    chosen = _choose(levels)
    labels = np.zeros(mask.shape, np.int32)
    count = 0
    for level, taken in zip(levels, chosen, strict=True):
        ids = np.zeros(len(taken) + 1, np.int32)
        ids[1:][taken] = count + 1 + np.arange(taken.sum())
        count += int(taken.sum())
        here = ids[level.labels]
        np.copyto(labels, here, where=here > 0)
    return labels


def without_small_holes(mask: NDArray[np.bool_], most_px: float) -> NDArray[np.bool_]:
    """Fill 4-connected holes of at most `most_px` pixels; a hole that touches the border stays open."""
    from scipy.ndimage import label

    holes, count = label(~mask)
    area = np.bincount(holes.ravel(), minlength=count + 1)
    filled = area <= most_px
    filled[0] = False
    filled[np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])] = False
    return mask | filled[holes]


def _levels(
    relief: NDArray[np.float32], mask: NDArray[np.bool_], steps: NDArray[np.float64], shape: Shape
) -> list[_Level]:
    levels = []
    for step in steps:
        inside = without_small_holes(mask & (relief > step), shape.hole_px) & mask
        level = _level(inside, shape)
        if len(level.area) == 0:
            break
        levels.append(level)
    return levels


def _level(inside: NDArray[np.bool_], shape: Shape) -> _Level:
    from scipy.ndimage import find_objects, label

    labels, count = label(inside, _EIGHT)
    area, elliptic, pixel = _moments(labels, count)
    sides = [max(box.stop - box.start for box in boxes) for boxes in find_objects(labels)]
    allowed = (area >= shape.least_px) & (area <= shape.most_px) & (np.array(sides) <= shape.longest_px)
    quality = np.clip((elliptic - _LEAST_ELLIPTIC) / (1 - _LEAST_ELLIPTIC), 0, 1) ** _ELLIPTIC_POWER
    # A speck is always a good ellipse; the smallest nucleus counts half.
    quality *= area / (area + shape.least_px)
    return _Level(labels, pixel, area, np.where(allowed, quality, 0))
