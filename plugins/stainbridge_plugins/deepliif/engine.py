"""One set of networks in a process for all plugins that ask for the same, and the tiles it has seen lately.

Segmenter and classifier are separate plugins. Constructed with the same files and settings on the same device they share one engine, so
that the networks are in memory once, and a tile that comes again is not computed again.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB

from .cells import Mask
from .ensemble import Ensemble, Pictures, to_tile
from .files import MARKER, ModelFiles, model_files
from .networks import TILE_PX
from .settings import NetworkSettings, SegWeights

Span: TypeAlias = tuple[int, int, int, int]

HALO_PX = 64
"""Context around what a tile is used for: 16 um, an eighth of a tile."""

_TILES_KEPT = 64
_AT_ONCE = 16
_CORE_PX = TILE_PX - 2 * HALO_PX

# The one piece of state: networks are 1.5 GB, and two plugins need the same.
_open: WeakValueDictionary[object, Engine] = WeakValueDictionary()
_turn = threading.Lock()


class Engine:
    """Networks, and tiles seen lately (64 of them, 64 MB).

    Parameters
    ----------
    files, shares, settings, device : as in `Ensemble`
    """

    def __init__(self, files: ModelFiles, shares: SegWeights, settings: NetworkSettings, device: str) -> None:
        self.files = files
        self._ensemble = Ensemble(files, shares, settings, device)
        self._tiles: OrderedDict[bytes, Pictures] = OrderedDict()
        self._turn = threading.Lock()

    @property
    def makes_marker(self) -> bool:
        """Whether the picture of the marker is among what it makes."""
        return MARKER in self.files.by_network

    def tiles(self, tiles: RGB) -> Pictures:
        """Return the pictures of uint8 (N, 512, 512, 3) tiles; errors as `Ensemble`."""
        keys = [hashlib.blake2b(np.ascontiguousarray(tile), digest_size=16).digest() for tile in tiles]
        with self._turn:
            done = {key: self._tiles[key] for key in keys if key in self._tiles}
        new = {key: tile for key, tile in zip(keys, tiles, strict=True) if key not in done}
        if new:
            found = self._ensemble(np.stack(list(new.values())))
            done.update({key: picture.copy() for key, picture in zip(new, found, strict=True)})
        with self._turn:
            for key in keys:
                self._tiles[key] = done[key]
                self._tiles.move_to_end(key)
            while len(self._tiles) > _TILES_KEPT:
                self._tiles.popitem(last=False)
        return np.stack([done[key] for key in keys])

    def pictures(self, pixels: RGB, *, where: Mask | None = None) -> NDArray[np.uint8]:
        """Return uint8 (H, W, 4) for uint8 (H, W, 3) of any size: tiles of 512 px, 64 px of each side of which is context.

        A picture that is smaller than a tile, or a side of it, is mirrored at its lower right. Where `where`, bool (H, W), is given,
        only tiles with a pixel of it are computed, and the rest is zero.
        """
        spans = [
            (row, column)
            for row in _spans(pixels.shape[0])
            for column in _spans(pixels.shape[1])
            if where is None or where[row[0] : row[1], column[0] : column[1]].any()
        ]
        canvas = np.zeros((*pixels.shape[:2], 4), np.uint8)
        for start in range(0, len(spans), _AT_ONCE):
            some = spans[start : start + _AT_ONCE]
            tiles = np.stack([to_tile(pixels[row[2] : row[3], column[2] : column[3]]) for row, column in some])
            for (row, column), found in zip(some, self.tiles(tiles), strict=True):
                inner = found[row[0] - row[2] : row[1] - row[2], column[0] - column[2] : column[1] - column[2]]
                canvas[row[0] : row[1], column[0] : column[1]] = inner
        return canvas


def open_engine(settings: NetworkSettings, weights: Mapping[str, Path], *, device: str, plugin: str) -> Engine:
    """Return the engine of these files and settings on this device; made if there is none.

    Raises
    ------
    WeightsUnavailable, WeightsCorrupt, ConfigError
        From `model_files`, and from the files themselves.
    DeviceUnavailable, MissingExtra
        If the device or torch is not there.
    """
    shared = NetworkSettings.model_validate(settings.model_dump(include=set(NetworkSettings.model_fields)))
    files, shares = model_files(shared, weights, plugin)
    key = (shared.model_copy(update={"path": None}), shares, device, *map(_identity, files.by_name.values()))
    with _turn:
        engine = _open.get(key)
        if engine is None:
            engine = _open[key] = Engine(files, shares, shared, device)
        return engine


def _identity(path: Path) -> tuple[str, int, int]:
    """Return what tells a file from another, and from itself after a change."""
    found = path.stat()
    return str(path.resolve()), found.st_size, found.st_mtime_ns


def _spans(length: int) -> list[Span]:
    """Return (first, last, from, to) along an axis: what each tile is used for, and what is read; on the grid that core uses."""
    read = min(TILE_PX, length)
    spans = []
    for start in range(0, length, _CORE_PX) if length > TILE_PX else (0,):
        stop = min(start + _CORE_PX, length) if length > TILE_PX else length
        first = min(max(start - HALO_PX, 0), length - read)
        spans.append((start, stop, first, first + read))
    return spans
