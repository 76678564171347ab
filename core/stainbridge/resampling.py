"""Resample the nuclei of a picture: whole blocks of it where there are enough, else single nuclei."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_BLOCKS = 20
"""Fewest blocks that are resampled; with fewer, nuclei are."""


@dataclass(frozen=True)
class Resampled:
    """Nuclei per intensity class, drawn again and again.

    Parameters
    ----------
    counts : int64 (times, 4)
    unit : what was drawn, "blocks" or "nuclei"
    units : how many there are
    """

    counts: NDArray[np.int64]
    unit: str
    units: int


def resample(
    classes: NDArray[np.int64], position: NDArray[np.float64], times: int, rng: np.random.Generator
) -> Resampled:
    """Draw blocks with replacement; with fewer than `MIN_BLOCKS`, nuclei as if independent, each weighing Poisson(1).

    Parameters
    ----------
    classes : intensity class of each nucleus, 0..3, int64 (n,)
    position : y and x of each nucleus in sides of a block, float64 (2, n)
    """
    blocks = _count_by_block(classes, np.floor(position))
    if len(blocks) >= MIN_BLOCKS:
        return Resampled(_draw_blocks(blocks, times, rng), "blocks", len(blocks))
    return Resampled(rng.poisson(np.bincount(classes, minlength=4), (times, 4)), "nuclei", len(classes))


def _count_by_block(classes: NDArray[np.int64], position: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count the classes in each block that holds a nucleus, int64 (blocks, 4)."""
    y, x = position.astype(np.int64)
    _, block = np.unique(y * (x.max(initial=0) + 1) + x, return_inverse=True)
    n_blocks = int(block.max(initial=-1)) + 1
    counts: NDArray[np.int64] = np.bincount(block * 4 + classes, minlength=n_blocks * 4).reshape(n_blocks, 4)
    return counts


def _draw_blocks(blocks: NDArray[np.int64], times: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw as many blocks as there are, with replacement, and sum their counts; int64 (times, 4)."""
    sums = [_weights(len(blocks), n, rng) @ blocks.astype(np.float64) for n in _chunks(times, len(blocks))]
    drawn: NDArray[np.int64] = np.concatenate([np.zeros((0, 4)), *sums]).astype(np.int64)
    return drawn


def _weights(n_blocks: int, times: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how often each block is drawn, float64 (times, n_blocks)."""
    drawn = rng.integers(0, n_blocks, (times, n_blocks)) + n_blocks * np.arange(times)[:, None]
    return np.bincount(drawn.ravel(), minlength=times * n_blocks).reshape(times, n_blocks).astype(np.float64)


def _chunks(times: int, width: int) -> Iterator[int]:
    """Split `times` so that a chunk holds about a million draws."""
    step = max(1, 1_000_000 // width)
    for start in range(0, times, step):
        yield min(step, times - start)
