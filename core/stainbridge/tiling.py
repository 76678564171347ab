"""Cut a picture of any size into windows, and put per-window results together again.

A nucleus belongs to the window whose core (half-open) holds its centroid. While the halo is at least the longest distance from a
centroid to its edge, every nucleus is found whole by its owner, exactly once, as in a segmentation of the whole picture.
"""

from __future__ import annotations

import errno
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, WriteFailed

IN_MEMORY_PX = 4096 * 4096
"""Canvases up to this many pixels stay in memory; larger ones go to a temporary file."""


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: top left corner and size."""

    y: int
    x: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The window as an index into a (H, W, ...) array."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    def relative_to(self, other: Window) -> Window:
        """Return the same rectangle in the coordinates of `other`."""
        return Window(self.y - other.y, self.x - other.x, self.height, self.width)


@dataclass(frozen=True)
class Tile:
    """One step of a tiled pass: `core` is owned by it, `outer` is what is read."""

    core: Window
    outer: Window


def tiles(shape: tuple[int, int], core_px: int, halo_px: int, *, offset: tuple[int, int] = (0, 0)) -> list[Tile]:
    """Cover a picture with cores of `core_px` and a halo of `halo_px`, in row-major order.

    Outer windows are shifted inside the picture rather than cut, so that all have one size where the picture is large enough.

    Parameters
    ----------
    shape : (height, width) in pixels
    offset : pixels by which the grid of cores starts before the corner, 0 <= offset < core_px
    """
    if core_px < 1 or halo_px < 0:
        raise ConfigError(
            f"A tile needs a core of at least 1 px and a halo of at least 0; found {core_px} and {halo_px}."
        )
    rows = _spans(shape[0], core_px, halo_px, offset[0])
    columns = _spans(shape[1], core_px, halo_px, offset[1])
    return [
        Tile(Window(cy, cx, ch, cw), Window(oy, ox, oh, ow)) for cy, ch, oy, oh in rows for cx, cw, ox, ow in columns
    ]


def _spans(length: int, core_px: int, halo_px: int, offset: int) -> list[tuple[int, int, int, int]]:
    outer_px = min(core_px + 2 * halo_px, length)
    spans = []
    for start in range(-(offset % core_px), length, core_px):
        first, last = max(start, 0), min(start + core_px, length)
        outer = min(max(start - halo_px, 0), length - outer_px)
        spans.append((first, last - first, outer, outer_px))
    return spans


class Canvas:
    """A (H, W) or (H, W, C) array that windows are written to and read from; zero at first.

    Small ones live in memory, large ones in a temporary file that has no name, so that it is gone with the object, or with the
    process however that ends. The file is read and written by rows, not mapped: a full disk is then an error and not a crash, and
    pages that were touched do not count as memory.

    Raises
    ------
    WriteFailed
        If the temporary file cannot be made.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, mpp: float | None = None) -> None:
        self._shape, self.dtype, self.mpp = shape, np.dtype(dtype), mpp
        self._array: NDArray[Any] | None = None
        if shape[0] * shape[1] <= IN_MEMORY_PX:
            self._array = np.zeros(shape, dtype)
            return
        self._turn = threading.Lock()
        try:
            # POSIX unlinks it at once, Windows when the last handle is closed.
            self._file: Any = tempfile.TemporaryFile(prefix="stainbridge-", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            self._file.truncate(int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize)
        except OSError as error:
            raise _no_room(error) from error

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._shape[0], self._shape[1]

    def read(self, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Return a copy of the window, (height, width) or (height, width, C)."""
        if self._array is not None:
            return self._array[y : y + height, x : x + width].copy()
        block = np.empty((height, width, *self._shape[2:]), self.dtype)
        with self._turn:
            for row, position in zip(block, self._positions(y, x, height), strict=True):
                self._file.seek(position)
                _move_all(self._file.readinto, row)
        return block

    def write(self, y: int, x: int, block: NDArray[Any]) -> None:
        """Write `block` with its corner at (y, x).

        Raises
        ------
        WriteFailed
            If the temporary file cannot be written, for example because the disk is full.
        """
        if self._array is not None:
            self._array[y : y + block.shape[0], x : x + block.shape[1]] = block
            return
        block = np.ascontiguousarray(block, self.dtype)
        try:
            with self._turn:
                for row, position in zip(block, self._positions(y, x, len(block)), strict=True):
                    self._file.seek(position)
                    _move_all(self._file.write, row)
        except OSError as error:
            raise _no_room(error) from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.read(0, 0, *self.shape).astype(dtype or self.dtype, copy=False)

    def _positions(self, y: int, x: int, height: int) -> Iterator[int]:
        cell = self.dtype.itemsize * int(np.prod(self._shape[2:], dtype=np.int64))
        return (cell * (row * self._shape[1] + x) for row in range(y, y + height))


def _move_all(move: Callable[[memoryview], int], row: NDArray[Any]) -> None:
    """Call `move`, which may stop early, until every byte of `row` is read or written."""
    rest = row.reshape(-1).view(np.uint8).data
    while rest:
        moved = move(rest)
        if not moved:
            raise OSError(errno.EIO, "the temporary file was cut short")
        rest = rest[moved:]


def _no_room(error: OSError) -> WriteFailed:
    return WriteFailed(
        f"The temporary folder {tempfile.gettempdir()} could not take a working copy: {error.strerror}.\n"
        "Free some space, or point TMPDIR to a larger disk."
    )
