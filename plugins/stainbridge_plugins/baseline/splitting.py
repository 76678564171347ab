"""Cut a mask into nuclei: of all level sets of a relief, keep the disjoint ones that look most like ellipses.

Each decision about an object uses only objects nested with it, and objects beyond `Shape.longest_px` are never chosen, so that a
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
_SPLIT_COST = 0.03
# A seed is smaller than its nucleus by about this rim.
_RIM_PX = 2


@dataclass(frozen=True)
class Shape:
    """What may be a nucleus.

    Parameters
    ----------
    least_px, most_px : area in pixels
    longest_px : longest side of the bounding box in pixels
    hole_px : holes up to this many pixels belong to the object
    reach_px : a nucleus ends at most this far from its seed
    """

    least_px: float
    most_px: float
    longest_px: float
    hole_px: float
    reach_px: int


@dataclass(frozen=True)
class _Level:
    """Components of one level set: labels, a pixel of each, its area and how good a nucleus each would be."""

    labels: NDArray[np.int32]
    pixel: NDArray[np.int64]
    area: NDArray[np.float64]
    quality: NDArray[np.float64]


def best_components(
    relief: NDArray[np.float32], mask: NDArray[np.bool_], steps: NDArray[np.float64], shape: Shape
) -> LabelMap:
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


def with_leftovers(seeds: LabelMap, mask: NDArray[np.bool_], shape: Shape) -> LabelMap:
    """Add what the seeds leave of the mask, away from them, where that looks like a nucleus by itself.

    A pale nucleus that touches a dark one is in no level set without it.
    """
    from scipy.ndimage import binary_dilation, binary_opening

    rest = mask & ~binary_dilation(seeds > 0, _EIGHT, iterations=_RIM_PX)
    level = _level(binary_opening(rest), shape)
    ids = np.where(level.quality > 0, np.cumsum(level.quality > 0) + seeds.max(), 0).astype(np.int32)
    return np.maximum(seeds, np.concatenate([[np.int32(0)], ids])[level.labels])


def flooded(relief: NDArray[np.float32], seeds: LabelMap, mask: NDArray[np.bool_], reach_px: int) -> LabelMap:
    """Grow the seeds down the relief within the mask (watershed), no farther than `reach_px`."""
    from scipy.ndimage import binary_dilation
    from skimage.segmentation import watershed

    near = binary_dilation(seeds > 0, _EIGHT, iterations=reach_px)
    labels: LabelMap = watershed(-relief, seeds, mask=mask & near).astype(np.int32)
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


def opened(labels: LabelMap, radius_px: float) -> LabelMap:
    """Cut off what is thinner than a disc, label by label; parts that fall apart keep one id."""
    from scipy.ndimage import maximum_filter, minimum_filter
    from skimage.morphology import disk

    if radius_px < 1:
        return labels
    round_patch = disk(round(radius_px))
    pure = minimum_filter(labels, footprint=round_patch) == maximum_filter(labels, footprint=round_patch)
    grown = maximum_filter(np.where(pure, labels, 0), footprint=round_patch)
    return np.where(grown == labels, labels, 0)


def grown(labels: LabelMap, steps: int) -> LabelMap:
    """Grow every label by `steps` pixels over background; where two meet, the higher id wins."""
    from scipy.ndimage import generate_binary_structure, maximum_filter

    for _ in range(steps):
        labels = np.where(labels == 0, maximum_filter(labels, footprint=generate_binary_structure(2, 1)), labels)
    return labels


def renumbered(labels: LabelMap, least_px: float) -> LabelMap:
    """Give every connected part of at least `least_px` pixels an id 1..n in reading order; drop the others."""
    from skimage.measure import label

    parts = label(labels, connectivity=2)
    kept = np.bincount(parts.ravel()) >= least_px
    kept[0] = False
    return (np.cumsum(kept) * kept).astype(np.int32)[parts]


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


def _moments(
    labels: NDArray[np.int32], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return area, share of the area of the ellipse with equal second moments, and first pixel, per label 1..count."""
    flat = np.flatnonzero(labels)
    group = labels.ravel()[flat] - 1
    y, x = np.divmod(flat, labels.shape[1])
    area = np.bincount(group, minlength=count).astype(np.float64)
    dy = y - (np.bincount(group, y, count) / area)[group]
    dx = x - (np.bincount(group, x, count) / area)[group]
    # A pixel is a square and not a point: 1/12 is its own variance.
    yy, xx = (np.bincount(group, d * d, count) / area + 1 / 12 for d in (dy, dx))
    xy = np.bincount(group, dy * dx, count) / area
    first = np.empty(count, np.int64)
    first[group[::-1]] = flat[::-1]
    return area, area / (4 * np.pi * np.sqrt(yy * xx - xy * xy)), first


def _choose(levels: list[_Level]) -> list[NDArray[np.bool_]]:
    """Decide from the innermost components outwards, then drop what lies inside a chosen one."""
    better: list[NDArray[np.bool_]] = []
    inner: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] | None = None
    for level in reversed(levels):
        inside = _mean_inside(level, inner)
        better.append((level.quality > 0) & (level.quality >= inside))
        best = np.maximum(level.quality, inside)
        inner = (level.pixel, best, np.where(best > 0, level.area, 0.0))
    chosen, covered = [], np.zeros(0, bool)
    for outer, level, wanted in zip([None, *levels], levels, reversed(better), strict=False):
        within = np.zeros(len(wanted), bool) if outer is None else covered[outer.labels.ravel()[level.pixel] - 1]
        chosen.append(wanted & ~within)
        covered = wanted | within
    return chosen


def _mean_inside(
    level: _Level, inner: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] | None
) -> NDArray[np.float64]:
    if inner is None:
        return np.zeros(len(level.area))
    pixel, best, weight = inner
    parent = level.labels.ravel()[pixel] - 1
    n = len(level.area)
    children = np.bincount(parent, weight > 0, n)
    mean = np.bincount(parent, weight * best, n) / np.maximum(np.bincount(parent, weight, n), 1e-9)
    # A split has to gain something.
    return mean - np.where(children > 1, _SPLIT_COST, 0.0)
