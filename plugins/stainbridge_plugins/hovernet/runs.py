"""Runs of equal values along the rows of a map: what is constant in a run need be looked at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Runs(NamedTuple):
    """The runs of a map that are not 0, in row-major order.

    Parameters
    ----------
    first : int64 (n,), index of each run's first pixel in the raveled map
    length : int64 (n,), pixels
    value : int32 (n,)
    """

    first: NDArray[np.intp]
    length: NDArray[np.intp]
    value: NDArray[np.int32]


def runs_of(values: NDArray[np.int32]) -> Runs:
    """Return the runs of int32 (H, W); none reaches over the end of a row."""
    starts = np.empty(values.shape, bool)
    starts[:, :1] = True
    np.not_equal(values[:, 1:], values[:, :-1], out=starts[:, 1:])
    first = np.flatnonzero(starts)
    value = values.ravel()[first]
    length = np.diff(first, append=values.size)
    kept = value != 0
    return Runs(first[kept], length[kept], value[kept])
