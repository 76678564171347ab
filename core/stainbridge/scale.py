"""Bring pixels and labels from one scale to another, window by window.

Both views are anchored at the corner of the whole picture: a window read alone equals the same window cut from the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import ScaleUnknown
from .records import RGB, LabelMap, LabelSource, Source

SAME_SCALE = 0.02
"""Relative difference of mpp below which no resampling is done: it would blur and gain nothing."""

BLOCK_PX = 256
"""Side of the blocks that a rescaled view is made of."""


def rescale(source: Source, mpp: float | None) -> Source:
    """Return `source` as seen at `mpp` micrometres per pixel; `source` itself where `mpp` is None or the same scale.

    Raises
    ------
    ScaleUnknown
        If a scale is asked for and the source has none.
    """
    if mpp is None:
        return source
    if source.mpp is None:
        raise ScaleUnknown(f"{source.name!r} has no pixel size; {mpp} micrometres per pixel were asked for.")
    if abs(source.mpp / mpp - 1) <= SAME_SCALE:
        return source
    return Rescaled(source, mpp)


@dataclass(frozen=True)
class Restated:
    """A `Source` whose pixel size is known better than it says.

    Parameters
    ----------
    source : the picture
    mpp : micrometres per pixel, instead of its own
    """

    source: Source
    mpp: float

    @property
    def name(self) -> str:
        """Name of the picture."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.source.shape

    @property
    def path(self) -> Path | None:
        """The file of the picture, where it has one."""
        return getattr(self.source, "path", None)

    def read(self, y: int, x: int, height: int, width: int) -> RGB:
        """Return the window as uint8 (height, width, 3)."""
        return self.source.read(y, x, height, width)


@dataclass(frozen=True)
class Rescaled:
    """A `Source` seen at another scale, by Pillow's antialiased triangle filter.

    Parameters
    ----------
    source : has `mpp`
    mpp : micrometres per pixel of this view
    """

    source: Source
    mpp: float

    @property
    def name(self) -> str:
        """Name of the underlying source."""
        return self.source.name

    @cached_property
    def step(self) -> float:
        """Pixels of the underlying source per pixel of this view."""
        assert self.source.mpp is not None
        return self.mpp / self.source.mpp

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels of this view; at least one each."""
        height, width = self.source.shape
        return max(1, round(height / self.step)), max(1, round(width / self.step))

    def read(self, y: int, x: int, height: int, width: int) -> RGB:
        """Return the window as uint8 (height, width, 3)."""
        rows, columns = self._blocks(y, height, 0), self._blocks(x, width, 1)
        pixels = self._read_padded(rows[0].first, columns[0].first, rows[-1].last, columns[-1].last)
        # Columns first, then rows: left to itself Pillow picks the order by the size of the window, and its rounding differs.
        pixels = np.concatenate([_resize(pixels, block, columns[0].first, 1) for block in columns], axis=1)
        pixels = np.concatenate([_resize(pixels, block, rows[0].first, 0) for block in rows], axis=0)
        top, left = y - rows[0].start, x - columns[0].start
        return pixels[top : top + height, left : left + width]

    def _blocks(self, start: int, length: int, axis: int) -> list[_Block]:
        limit = self.shape[axis]
        numbers = range(start // BLOCK_PX, (start + length - 1) // BLOCK_PX + 1)
        return [_Block.at(number * BLOCK_PX, min((number + 1) * BLOCK_PX, limit), self.step) for number in numbers]

    def _read_padded(self, top: int, left: int, bottom: int, right: int) -> RGB:
        """Read beyond the picture too, by repeating its edge: the last pixel of this view may lie partly outside."""
        height, width = self.source.shape
        end_y, end_x = min(bottom, height), min(right, width)
        pixels = self.source.read(top, left, end_y - top, end_x - left)
        if (end_y, end_x) == (bottom, right):
            return pixels
        return np.pad(pixels, ((0, bottom - end_y), (0, right - end_x), (0, 0)), mode="edge")


@dataclass(frozen=True)
class _Block:
    """Pixels `start` to `stop` of a view along one axis, made from pixels `first` to `last` of the source.

    Pillow keeps coordinates in single precision, so every block is always made from the same pixels and the same numbers.
    """

    start: int
    stop: int
    first: int
    last: int
    low: float
    high: float

    @classmethod
    def at(cls, start: int, stop: int, step: float) -> _Block:
        low, high, reach = start * step, stop * step, math.ceil(max(step, 1.0)) + 1
        return cls(start, stop, max(0, math.floor(low) - reach), math.ceil(high) + reach, low, high)


def _resize(pixels: RGB, block: _Block, offset: int, axis: int) -> RGB:
    """Resample one block along one axis; `pixels` start at source pixel `offset` on that axis."""
    from PIL import Image as Pillow

    span = slice(block.first - offset, block.last - offset)
    part = Pillow.fromarray(np.ascontiguousarray(pixels[span] if axis == 0 else pixels[:, span]))
    length, box = block.stop - block.start, (block.low - block.first, block.high - block.first)
    if axis == 0:
        return np.asarray(
            part.resize((part.width, length), Pillow.Resampling.BILINEAR, box=(0, box[0], part.width, box[1]))
        )
    return np.asarray(
        part.resize((length, part.height), Pillow.Resampling.BILINEAR, box=(box[0], 0, box[1], part.height))
    )


@dataclass(frozen=True)
class RescaledLabels:
    """A `LabelSource` seen on another grid of the same picture, by nearest neighbour.

    Parameters
    ----------
    labels : the labels on their own grid
    shape : (height, width) of this view
    mpp : micrometres per pixel of this view
    ids : int32 (n + 1,), id shown for each id of `labels`; None shows them as they are
    """

    labels: LabelSource
    shape: tuple[int, int]
    mpp: float | None
    ids: NDArray[np.int32] | None = None

    def read(self, y: int, x: int, height: int, width: int) -> LabelMap:
        """Return the window as int32 (height, width)."""
        rows = self._nearest(y, height, 0)
        columns = self._nearest(x, width, 1)
        block = self.labels.read(
            int(rows[0]), int(columns[0]), int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        )
        if self.labels.shape != self.shape:
            block = block[np.ix_(rows - rows[0], columns - columns[0])]
        return block if self.ids is None else self.ids[block]

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.int32]:
        return self.read(0, 0, *self.shape).astype(dtype or np.int32)  # type: ignore[call-overload,no-any-return]

    def _nearest(self, start: int, length: int, axis: int) -> NDArray[np.intp]:
        if self.labels.shape == self.shape:
            return np.arange(start, start + length)
        step = self._step(axis)
        index: NDArray[np.intp] = np.floor((np.arange(start, start + length) + 0.5) * step).astype(np.intp)
        return index.clip(0, self.labels.shape[axis] - 1)

    def _step(self, axis: int) -> float:
        if self.mpp is not None and self.labels.mpp is not None:
            return self.mpp / self.labels.mpp
        return self.labels.shape[axis] / self.shape[axis]
