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


def tiles(
    shape: tuple[int, int], core_px: int, halo_px: int, *, offset: tuple[int, int] = (0, 0), multiple_of: int = 1
) -> list[Tile]:
    """Cover a picture with cores of `core_px` and a halo of `halo_px`, in row-major order.

    Outer windows are shifted inside the picture rather than cut, so that all have one size where the picture is large enough.

    Parameters
    ----------
    shape : (height, width) in pixels
    offset : pixels by which the grid of cores starts before the corner, 0 <= offset < core_px
    multiple_of : outer windows start at a multiple of this, as do core, halo and offset; the last ones of a row or column may be
        smaller by less than it
    """
    if core_px < 1 or halo_px < 0:
        raise ConfigError(
            f"A tile needs a core of at least 1 px and a halo of at least 0; found {core_px} and {halo_px}."
        )
    if any(one % multiple_of for one in (core_px, halo_px, *offset)):
        raise ConfigError(
            f"Core, halo and offset must be multiples of {multiple_of} px; found {core_px}, {halo_px} and {offset}."
        )
    rows = _spans(shape[0], core_px, halo_px, offset=offset[0], multiple_of=multiple_of)
    columns = _spans(shape[1], core_px, halo_px, offset=offset[1], multiple_of=multiple_of)
    return [
        Tile(Window(cy, cx, ch, cw), Window(oy, ox, oh, ow)) for cy, ch, oy, oh in rows for cx, cw, ox, ow in columns
    ]


def _spans(
    length: int, core_px: int, halo_px: int, *, offset: int, multiple_of: int
) -> list[tuple[int, int, int, int]]:
    outer_px = min(core_px + 2 * halo_px, length)
    last_outer = up_to(length - outer_px, multiple_of)
    spans = []
    for start in range(-(offset % core_px), length, core_px):
        first, last = max(start, 0), min(start + core_px, length)
        outer = min(max(start - halo_px, 0), last_outer)
        spans.append((first, last - first, outer, min(outer_px, length - outer)))
    return spans


def up_to(length: int, multiple_of: int) -> int:
    """Return the smallest multiple that is not below `length`."""
    return -(-length // multiple_of) * multiple_of


def feather(tile: Tile, shape: tuple[int, int], blend_px: int) -> tuple[Window, NDArray[np.float32]]:
    """Return the window that a tile contributes to, and its weight at each pixel of it.

    The weight falls in a straight line from 1 to 0 over `blend_px` on either side of a border between cores: half of it at the border.
    The weights of a grid of tiles add up to 1 at every pixel; at most four tiles share a pixel where cores are twice `blend_px` or more.

    Parameters
    ----------
    tile : its halo is at least `blend_px`
    shape : (height, width) of the picture
    blend_px : at least 1

    Returns
    -------
    window : the core and `blend_px` around it, as far as the picture reaches
    weights : float32 (height, width) of the window
    """
    core = tile.core
    top, rows = _weights(core.y, core.height, shape[0], blend_px)
    left, columns = _weights(core.x, core.width, shape[1], blend_px)
    return Window(top, left, len(rows), len(columns)), np.outer(rows, columns).astype(np.float32)


def _weights(start: int, length: int, limit: int, blend_px: int) -> tuple[int, NDArray[np.float64]]:
    """Return the first position that has a weight along one axis, and the weights from there."""
    end = start + length
    first, last = max(start - blend_px, 0), min(end + blend_px, limit)
    centres = np.arange(first, last) + 0.5
    risen = _ramp(centres - start, blend_px) if start > 0 else np.ones_like(centres)
    fallen = _ramp(centres - end, blend_px) if end < limit else np.zeros_like(centres)
    return first, risen - fallen


def _ramp(beyond: NDArray[np.float64], blend_px: int) -> NDArray[np.float64]:
    return np.clip((beyond + blend_px) / (2 * blend_px), 0.0, 1.0)


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

    def add(self, y: int, x: int, block: NDArray[Any]) -> None:
        """Add `block` to what is there, with its corner at (y, x); errors as `write`."""
        self.write(y, x, self.read(y, x, block.shape[0], block.shape[1]) + block)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.read(0, 0, *self.shape).astype(dtype or self.dtype, copy=False)

    def _positions(self, y: int, x: int, height: int) -> Iterator[int]:
        cell = self.dtype.itemsize * int(np.prod(self._shape[2:], dtype=np.int64))
        return (cell * (row * self._shape[1] + x) for row in range(y, y + height))


class Blended:
    """A uint8 (H, W, C) picture made of tiles that fade into one another; each tile is given once, in any order.

    Sums are kept in whole 256ths of a grey level, so they do not depend on the order, and where the tiles agree the picture is what they
    agree on.
    """

    def __init__(self, shape: tuple[int, int, int], blend_px: int) -> None:
        self._sums, self._blend_px = Canvas(shape, np.uint16), blend_px

    def add(self, tile: Tile, pixels: NDArray[np.uint8]) -> None:
        """Mix in the pixels of a tile, uint8 (height, width, C) of its outer window; errors as `Canvas.write`."""
        window, weights = feather(tile, self._sums.shape, self._blend_px)
        part = pixels[window.relative_to(tile.outer).slices]
        self._sums.add(window.y, window.x, np.rint(part * (256 * weights[..., None])).astype(np.uint16))

    def read(self, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return the window, uint8 (height, width, C); whole where all tiles that contribute to it were given."""
        return ((self._sums.read(y, x, height, width) + np.uint16(128)) >> 8).astype(np.uint8)


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
