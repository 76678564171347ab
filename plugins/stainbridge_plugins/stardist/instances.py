"""From probability and distances to labels, with stardist's own compiled suppression.

Source: `predict_instances` of stardist 0.9.2, step by step.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stainbridge import LabelMap
from stainbridge.errors import MissingExtra

from .drawing import draw

_RIM_CELLS = 2  # of the map, at its border, whose candidates are left out
_LEAST_DISTANCE = np.float32(1e-3)


@dataclass(frozen=True)
class Thresholds:
    """A candidate must have a probability above `prob`; of two that overlap by more than `nms` the better stays."""

    prob: float
    nms: float


def find_instances(
    prob: NDArray[np.float32],
    dist: NDArray[np.float32],
    *,
    shape: tuple[int, int],
    grid: tuple[int, int],
    thresholds: Thresholds,
) -> LabelMap:
    """Return the objects of one picture as int32 `shape`; ids 0..n, the most probable first, with gaps where one is covered.

    Parameters
    ----------
    prob, dist : float32 (h, w) and (h, w, rays), on the grid, of the padded picture
    shape : height and width of the picture without padding; candidates outside it are left out
    grid : pixels per cell, y and x
    """
    from stardist.nms import non_maximum_suppression_sparse

    candidate = np.zeros(prob.shape, bool)
    inner = (slice(_RIM_CELLS, -_RIM_CELLS),) * 2
    candidate[inner] = prob[inner] > thresholds.prob
    points = np.argwhere(candidate) * np.array(grid)
    inside = (points < np.array(shape)).all(axis=1)
    if not inside.any():
        return np.zeros(shape, np.int32)
    points, prob = points[inside], prob[candidate][inside]
    dist = np.maximum(_LEAST_DISTANCE, dist[candidate][inside])
    points, prob, dist, _ = non_maximum_suppression_sparse(dist, prob, points, nms_thresh=thresholds.nms)
    return draw(dist, points, prob, shape)


def without_gaps(labels: NDArray[Any]) -> LabelMap:
    """Number the ids of int (H, W) labels 1..n, in their order; 0 stays background."""
    present = np.zeros(int(labels.max(initial=0)) + 1, bool)
    present[labels.ravel()] = True
    present[0] = False
    ids = np.where(present, np.cumsum(present), 0).astype(np.int32)
    renumbered: LabelMap = ids[labels]
    return renumbered


def require_stardist() -> Any:
    """Import stardist (no TensorFlow), leave the process's warnings as they were, and return it; raises MissingExtra."""
    shown = warnings.formatwarning
    try:
        import stardist
    except ImportError:
        raise MissingExtra.of("stardist", "stardist", "stardist") from None
    finally:
        warnings.formatwarning = shown  # stardist puts its own in its place
    return stardist
