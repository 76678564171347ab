"""Tables of per-nucleus measurements, in passes over the labelled pixels and never over one nucleus at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .color import DAB, HAEMATOXYLIN, unmix
from .records import RGB, LabelMap


@dataclass(frozen=True)
class Regions:
    """Measurements of ids 1..n of one label map.

    Parameters
    ----------
    area_px : int64 (n,), pixels; 0 for an id that is absent
    y, x : float64 (n,), centroid in pixels; NaN for an absent id
    means : float64 (n, C), mean of each channel of the values; NaN for an absent id
    """

    area_px: NDArray[np.int64]
    y: NDArray[np.float64]
    x: NDArray[np.float64]
    means: NDArray[np.float64]


def regions(labels: LabelMap, values: NDArray[np.float32] | RGB | None = None, *, count: int | None = None) -> Regions:
    """Measure area, centroid and channel means of every label.

    Parameters
    ----------
    labels : int32 (H, W), ids 0..n
    values : (H, W, C) of any real type, or None for no means
    count : n, where it is known; otherwise the largest id
    """
    pixels = np.flatnonzero(labels)
    ids = labels.ravel()[pixels] - 1
    n = int(labels.max(initial=0)) if count is None else count
    area = np.bincount(ids, minlength=n)
    rows, columns = np.divmod(pixels, labels.shape[1])
    channels = [] if values is None else list(values.reshape(-1, values.shape[-1])[pixels].T)
    with np.errstate(invalid="ignore"):
        y, x, *means = (np.bincount(ids, weights, n) / area for weights in (rows, columns, *channels))
    return Regions(area, y, x, np.stack(means, axis=1) if means else np.empty((n, 0)))


def boxes(labels: LabelMap) -> NDArray[np.int64]:
    """Return the half-open boxes y0, x0, y1, x1 of ids 1..n, int64 (n, 4); an absent id has zeros."""
    from scipy import ndimage

    empty = (slice(0, 0), slice(0, 0))
    found = (pair or empty for pair in ndimage.find_objects(labels))
    return np.array([(r.start, c.start, r.stop, c.stop) for r, c in found], np.int64).reshape(-1, 4)


def stain_densities(ihc: RGB) -> NDArray[np.float32]:
    """Return the optical densities of haematoxylin and DAB, float32 (..., 2), of uint8 (..., 3) IHC.

    Optical density to base 10 against a background of 255, as in QuPath; stain vectors of `color`.
    """
    return unmix(ihc, np.stack([HAEMATOXYLIN, DAB]))
