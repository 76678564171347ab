"""Read windows of one TIFF page by decoding only the tiles or strips that they touch."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import PictureTooLarge, UnreadablePicture, UnsupportedPicture

from .codestream import jpeg2000_size, jpeg_size

SEGMENT_PX = 64_000_000
"""Most pixels of one compressed tile or strip, which has to be decoded whole."""

CACHE_BYTES = 64 << 20
"""Decoded tiles and strips that are kept; the newest one is kept whatever its size."""

_BOMB_PX, _BOMB_RATIO = 64_000_000, 1000  # no tissue compresses to less than a byte per 1000 px
_JPEG, _JPEG2000 = 7, (33003, 33004, 33005, 34712)
COMPRESSIONS = (1, 5, _JPEG, 8, 32773, 32946, 50000, *_JPEG2000)
"""TIFF's numbers for none, LZW, JPEG, deflate, PackBits, deflate, Zstandard, JPEG 2000: output of each is bounded."""


@dataclass(eq=False)
class Segments:
    """The stored tiles or strips of one page.

    Parameters
    ----------
    path : the file; opened anew for each decoding, so that threads need no common handle
    page : tifffile's page, parsed; its file may be closed
    fill : value of a tile that the file leaves out
    """

    path: Path
    page: Any
    fill: int
    _cache: OrderedDict[int, NDArray[Any]] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        page = self.page
        self.planes = page.samplesperpixel if page.planarconfig == 2 else 1
        self.samples = page.samplesperpixel // self.planes
        self.contiguous = bool(page.is_contiguous) and page.fillorder == 1 and page.predictor == 1
        strip = (min(page.rowsperstrip, page.imagelength), page.imagewidth)
        self.size = (page.tilelength, page.tilewidth) if page.is_tiled else strip
        if min(*self.size, *self.shape) < 1:
            raise UnreadablePicture(
                f"{str(self.path)!r} is damaged: {self.shape[1]} x {self.shape[0]} px in pieces of "
                f"{self.size[1]} x {self.size[0]}.\nCopy or export it again."
            )
        self.grid = (math.ceil(page.imagelength / self.size[0]), math.ceil(page.imagewidth / self.size[1]))
        self._check()
        # Made now: tifffile builds the decoder from the open file's tables.
        self._decode, self._tables, self._header = page.decode, page.jpegtables, page.jpegheader

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.page.imagelength, self.page.imagewidth

    def read(self, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Return the window, (height, width, samples) of the page's dtype.

        Raises
        ------
        UnreadablePicture
            If the file is gone or cut, or a tile is damaged.
        """
        if self.contiguous:
            return self._read_rows(y, x, height, width)
        out = np.empty((height, width, self.planes * self.samples), self.page.dtype)
        for plane in range(self.planes):
            channels = slice(plane * self.samples, (plane + 1) * self.samples)
            for row, column in self._touched(y, x, height, width):
                top, left = row * self.size[0], column * self.size[1]
                block = self._segment((plane * self.grid[0] + row) * self.grid[1] + column)
                first_y, first_x = max(y, top), max(x, left)
                part = block[first_y - top : y + height - top, first_x - left : x + width - left]
                target = out[first_y - y :, first_x - x :, channels]
                target[: part.shape[0], : part.shape[1]] = part
        return out

    def _touched(self, y: int, x: int, height: int, width: int) -> Iterator[tuple[int, int]]:
        for row in range(y // self.size[0], (y + height - 1) // self.size[0] + 1):
            for column in range(x // self.size[1], (x + width - 1) // self.size[1] + 1):
                yield row, column

    def _segment(self, index: int) -> NDArray[Any]:
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        block = self._decoded(index)
        with self._lock:
            self._cache[index] = block
            while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        return block

    def _decoded(self, index: int) -> NDArray[Any]:
        """Return one decoded segment as (height, width, samples)."""
        count = self.page.databytecounts[index]
        data = self._bytes(self.page.dataoffsets[index], count) if count else None
        self._check_claim(index, data)
        try:
            block, _, shape = self._decode(data, index, jpegtables=self._tables, jpegheader=self._header)
        except Exception as error:  # whatever the decoders of a dozen formats raise
            raise UnreadablePicture(f"{self._where(index)} is damaged: {error}.\nCopy the file again.") from error
        if block is None:
            return np.full(shape[1:], self.fill, self.page.dtype)
        return np.asarray(block[0], self.page.dtype)

    def _read_rows(self, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        # Read and not mapped: a file that shrinks meanwhile is then an error and not a crash.
        stored = np.dtype(self.page.parent.byteorder + self.page.dtype.char)
        cell = stored.itemsize * self.samples
        rows, columns = self.shape
        out = np.empty((height, width, self.planes * self.samples), self.page.dtype)
        for plane in range(self.planes):
            start = self.page.dataoffsets[0] + plane * rows * columns * cell
            positions = [start + cell * (row * columns + x) for row in range(y, y + height)]
            for line, data in zip(out, self._many(positions, width * cell), strict=True):
                pixels = np.frombuffer(data, stored).reshape(width, self.samples)
                line[:, plane * self.samples : (plane + 1) * self.samples] = pixels
        return out

    def _bytes(self, offset: int, count: int) -> bytes:
        return next(self._many([offset], count))

    def _many(self, offsets: list[int], count: int) -> Iterator[bytes]:
        try:
            with open(self.path, "rb", buffering=0 if len(offsets) == 1 else -1) as file:
                for offset in offsets:
                    file.seek(offset)
                    data = file.read(count)
                    if len(data) < count:
                        raise UnreadablePicture(
                            f"{str(self.path)!r} is truncated: of {count} bytes at {offset}, {len(data)} are there.\n"
                            "Copy it again."
                        )
                    yield data
        except UnreadablePicture:
            raise
        except OSError as error:
            raise UnreadablePicture(f"{str(self.path)!r} could not be read any more: {error.strerror}.") from error

    def _check(self) -> None:
        """Refuse what the directory of the file gives away, before any pixel is decoded."""
        page, name = self.page, repr(str(self.path))
        if page.compression not in COMPRESSIONS:
            raise UnsupportedPicture(
                f"{name} is compressed by {getattr(page.compression, 'name', page.compression)}, which is not read.\n"
                "Export it with LZW, deflate, JPEG, or no compression."
            )
        height, width = self.shape
        if not self.contiguous and self.size[0] * self.size[1] > SEGMENT_PX:
            raise self._too_large("in one piece")
        size = self.path.stat().st_size
        if height * width > max(_BOMB_PX, _BOMB_RATIO * size):
            raise self._too_large(f"in a file of {size:,} bytes")
        self._check_offsets(size)

    def _check_offsets(self, size: int) -> None:
        page, expected = self.page, self.planes * self.grid[0] * self.grid[1]
        offsets = np.asarray(page.dataoffsets, np.float64)
        counts = np.asarray(page.databytecounts, np.float64)
        if len(offsets) != len(counts) or (len(offsets) < expected and not self.contiguous):
            raise UnreadablePicture(
                f"{str(self.path)!r} is damaged: {expected} tiles or strips were expected, {len(offsets)} are listed.\n"
                "Copy it again."
            )
        end = float((offsets + counts).max(initial=0))
        if self.contiguous:
            pixel_bytes = page.samplesperpixel * page.dtype.itemsize
            end = max(end, float(offsets[0]) + float(math.prod(self.shape)) * pixel_bytes)
        if end > size:
            raise UnreadablePicture(
                f"{str(self.path)!r} is truncated: its pixels end at byte {end:.0f}, and it has {size} bytes.\n"
                "Copy it again."
            )

    def _check_claim(self, index: int, data: bytes | None) -> None:
        """Refuse a compressed tile that says it is larger than the tiles of its file."""
        if data is None or self.page.compression not in (_JPEG, *_JPEG2000):
            return
        claimed = jpeg_size(data) if self.page.compression == _JPEG else jpeg2000_size(data)
        if claimed and (claimed[0] > self.size[0] + 16 or claimed[1] > self.size[1] + 16):
            raise UnreadablePicture(
                f"{self._where(index)} is damaged: it claims {claimed[1]} x {claimed[0]} px in a grid of "
                f"{self.size[1]} x {self.size[0]}.\nCopy the file again."
            )

    def _too_large(self, how: str) -> PictureTooLarge:
        height, width = self.shape
        return PictureTooLarge(
            f"{str(self.path)!r} claims {width} x {height} px {how}; that is not decoded.\nConvert it to a tiled TIFF."
        )

    def _where(self, index: int) -> str:
        kind = "Tile" if self.page.is_tiled else "Strip"
        return f"{kind} {index} of {str(self.path)!r}"
