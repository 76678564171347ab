"""One-to-one choice among candidate pairs, without a table of everything against everything."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def most_pairs(i: NDArray[Any], j: NDArray[Any], cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Choose the most pairs that use each i and each j at most once and, among equals, those of least summed cost.

    Parameters
    ----------
    i, j : integer (k,), not negative; each pair occurs once
    cost : float64 (k,), 0..1

    Returns
    -------
    chosen : int64, ascending positions in `i`
    """
    # One i left over costs more than all pairs together.
    return _one_to_one(i, j, cost, idle=len(i) + 1.0)


def greatest_gain(i: NDArray[Any], j: NDArray[Any], gain: NDArray[np.float64]) -> NDArray[np.int64]:
    """Choose pairs that use each i and each j at most once, so that their gains (k,), each above 0 and up to 1, sum highest.

    Returns
    -------
    chosen : int64, ascending positions in `i`
    """
    return _one_to_one(i, j, 1 - gain, idle=1.0)


def in_order(i: NDArray[Any], j: NDArray[Any], cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Take the cheapest pair whose i and j are both free, again and again; ties by i, then j.

    Returns
    -------
    chosen : int64, ascending positions in `i`
    """
    taken_i: set[int] = set()
    taken_j: set[int] = set()
    chosen = []
    for position in np.lexsort((j, i, cost)).tolist():
        one, other = int(i[position]), int(j[position])
        if one not in taken_i and other not in taken_j:
            taken_i.add(one)
            taken_j.add(other)
            chosen.append(position)
    return np.array(sorted(chosen), np.int64)


def _one_to_one(i: NDArray[Any], j: NDArray[Any], cost: NDArray[np.float64], *, idle: float) -> NDArray[np.int64]:
    """Choose pairs of least cost in all, where an i without a pair costs `idle`, which no single pair exceeds."""
    alone = (np.bincount(i, minlength=1)[i] == 1) & (np.bincount(j, minlength=1)[j] == 1)
    rest = np.flatnonzero(~alone)
    if rest.size == 0:
        return np.flatnonzero(alone)
    chosen = rest[_cheapest(i[rest], j[rest], cost[rest], idle)]
    return np.sort(np.concatenate([np.flatnonzero(alone), chosen]))


def _cheapest(i: NDArray[Any], j: NDArray[Any], cost: NDArray[np.float64], idle: float) -> NDArray[np.int64]:
    """Solve it with scipy's sparse assignment, which wants a partner for every row: each gets an idle one of its own."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    _, row = np.unique(i, return_inverse=True)
    _, column = np.unique(j, return_inverse=True)
    n, m = int(row.max()) + 1, int(column.max()) + 1
    own = np.arange(n)
    # 1 is added to every weight because scipy drops entries of 0.
    weight = 1 + np.concatenate([cost, np.full(n, idle)])
    rows, columns = np.concatenate([row, own]), np.concatenate([column, m + own])
    partner = min_weight_full_bipartite_matching(coo_array((weight, (rows, columns)), shape=(n, m + n)).tocsr())[1]
    return np.flatnonzero(partner[row] == column)
