"""Pictures of results for the eye: outlines on the IHC, the virtual H&E, and reduced overviews of large ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stainbridge.records import RGB, LabelMap, LabelSource, Nuclei, Source

from .tiles import STEP_PX, windows

OVERVIEW_PX = 4096
"""Longest side of a PNG; a larger picture is reduced by the smallest power of two that brings it below."""

COLOURS = {True: (220, 30, 30), False: (30, 70, 230)}
"""Red for positive and blue for negative nuclei, sRGB."""


class Overview:
    """A picture reduced by a whole factor, put together block by block.

    Parameters
    ----------
    shape : (height, width) of the full picture in pixels
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.factor = 1
        # A power of two divides the steps of the pass, so that no reduced pixel straddles two blocks.
        while max(shape) > OVERVIEW_PX * self.factor and self.factor < STEP_PX:
            self.factor *= 2
        self.pixels: RGB = np.zeros((-(-shape[0] // self.factor), -(-shape[1] // self.factor), 3), np.uint8)

    def add(self, y: int, x: int, block: RGB) -> None:
        """Put in the uint8 (h, w, 3) block of the full picture whose corner is at (y, x), a multiple of the factor."""
        self.put(y, x, reduce(block, self.factor))

    def put(self, y: int, x: int, small: RGB) -> None:
        """Put in a block that is reduced already; (y, x) as in `add`."""
        top, left = y // self.factor, x // self.factor
        self.pixels[top : top + small.shape[0], left : left + small.shape[1]] = small

    def write(self, path: Path) -> None:
        """Write the picture as a PNG."""
        from PIL import Image as Pillow

        Pillow.fromarray(self.pixels).save(path, format="PNG", compress_level=2)  # higher takes longer and gains 5 %


def reduce(block: RGB, factor: int) -> RGB:
    """Return the means of factor x factor pixels, uint8; at the lower and right rim, of what there is."""
    from PIL import Image as Pillow

    return block if factor == 1 else np.asarray(Pillow.fromarray(np.ascontiguousarray(block)).reduce(factor))


def write_overlay(path: Path, source: Source, labels: LabelSource, nuclei: Nuclei) -> None:
    """Write the IHC with the outlines of its nuclei as a PNG, red positive and blue negative, one pixel wide.

    Where the picture is reduced, outlines are drawn after the reduction, so that they can still be seen.
    """
    overview = Overview(source.shape)
    colours = _colours(nuclei)
    for y, x, height, width in windows(source.shape, STEP_PX):
        small = reduce(source.read(y, x, height, width), overview.factor).copy()
        ids, edge = _outlined(labels, (y, x, height, width), overview.factor)
        small[edge] = colours[ids[edge]]
        overview.put(y, x, small)
    overview.write(path)


def mirrored(source: Source, overview: Overview, step_px: int) -> Iterator[RGB]:
    """Yield the windows of `source` in reading order, and put each into `overview` on the way: it is read only once."""
    for y, x, height, width in windows(source.shape, step_px):
        block = source.read(y, x, height, width)
        overview.add(y, x, block)
        yield block


def _colours(nuclei: Nuclei) -> RGB:
    table = np.zeros((int(nuclei.label.max(initial=0)) + 1, 3), np.uint8)
    table[nuclei.label] = np.where(nuclei.positive[:, None], COLOURS[True], COLOURS[False])
    return table


def _outlined(
    labels: LabelSource, window: tuple[int, int, int, int], factor: int
) -> tuple[LabelMap, NDArray[np.bool_]]:
    """Return the labels of a window on the reduced grid, and where a nucleus meets something else."""
    y, x, height, width = window
    rows, columns = _middles(y, height, factor, labels.shape[0]), _middles(x, width, factor, labels.shape[1])
    top, left = int(rows[0]), int(columns[0])
    block = labels.read(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)
    ids = block[np.ix_(rows - top, columns - left)]
    edge = np.zeros(ids.shape, bool)
    down, across = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return ids[1:-1, 1:-1], (edge & (ids > 0))[1:-1, 1:-1]


def _middles(start: int, length: int, factor: int, limit: int) -> NDArray[np.intp]:
    """Return the middle row of each reduced row of a window, with one neighbour on each side inside the picture."""
    reduced = np.arange(-1, -(-length // factor) + 1)
    return np.clip(start + reduced * factor + factor // 2, 0, limit - 1)
