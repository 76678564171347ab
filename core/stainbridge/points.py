"""Points held against points: which found centroid stands for which true one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .assignment import in_order, most_pairs
from .errors import ConfigError, ContractViolation


def matched_points(
    truth: NDArray[np.float64], found: NDArray[np.float64], radius: float, *, greedy: bool = False
) -> NDArray[np.int64]:
    """Pair points one to one that lie at most `radius` apart.

    The largest number of pairs is taken and, among equals, the least sum of distances. `greedy` takes the nearest pair
    first instead, then the nearest of what is left; it may find fewer. Memory grows with the pairs within the radius.

    Parameters
    ----------
    truth, found : float64 (n, 2) and (m, 2), finite
    radius : in the unit of the points, positive

    Returns
    -------
    pairs : int64 (k, 2), row of `truth` and row of `found`, in the order of `truth`

    Raises
    ------
    ContractViolation
        If the points are not finite pairs of coordinates.
    ConfigError
        If the radius is not a positive number.
    """
    if not (isinstance(radius, int | float | np.number) and math.isfinite(radius) and radius > 0):
        raise ConfigError(f"The radius within which points match must be a positive number; found {radius!r}.")
    t, f = _points(truth, "truth"), _points(found, "found")
    i, j, distance = _within(t, f, float(radius))
    chosen = (in_order if greedy else most_pairs)(i, j, distance / radius)
    pairs: NDArray[np.int64] = np.stack([i[chosen], j[chosen]], axis=1)
    return pairs[np.argsort(pairs[:, 0])]


def centroids(labels: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the mean pixel (y, x) of every object of a label map (H, W), float64 (n, 2), in the order of the ids.

    Ids are non-negative integers, 0 background, gaps allowed.
    """
    height, width = labels.shape
    edge = np.ones((height, width), bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=edge[:, 1:])
    start = np.flatnonzero(edge)
    length = np.diff(start, append=labels.size)
    ids = labels.ravel()[start]
    inside = np.flatnonzero(ids)
    start, length = start[inside], length[inside]
    values, number = np.unique(ids[inside], return_inverse=True)
    y, first = np.divmod(start, max(width, 1))
    weights = (length, length * y, length * (first + (length - 1) / 2))
    area, sum_y, sum_x = (np.bincount(number, weight, values.size) for weight in weights)
    return np.stack([sum_y / area, sum_x / area], axis=1)


def _points(points: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    array = np.asarray(points, np.float64)
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise ContractViolation(f"{what}: points must be (n, 2), one row each; found {array.shape}.")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ContractViolation(f"{what}: points must be finite numbers; row {row} is {array[row].tolist()}.")
    return array


def _within(
    truth: NDArray[np.float64], found: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return row of truth, row of found and distance of every pair at most `radius` apart."""
    if len(truth) == 0 or len(found) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)

    from scipy.spatial import cKDTree

    # The tree compares squares: asked for a little more, and the border decided by the distance itself.
    near = cKDTree(truth).sparse_distance_matrix(cKDTree(found), radius * (1 + 1e-9), output_type="ndarray")
    i, j = near["i"].astype(np.int64), near["j"].astype(np.int64)
    distance = np.hypot(*(truth[i] - found[j]).T)
    inside = distance <= radius
    return i[inside], j[inside], distance[inside]
