"""Tiles as the two programs cut them.

Source: github.com/nadeemlab/DeepLIIF, deepliif/models/__init__.py and deepliif/util, at tag V1.1.2 and in release 1.2.6. In 1.1.2 the
picture is resized to whole tiles, and tiles with their overlap are resized to 512 px: what is larger than about one tile and a half is
thereby seen at two thirds of its scale. The current program resizes nothing. Both are followed for tiles of 512 px, their default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stainbridge import RGB

from .ensemble import Pictures
from .networks import TILE_PX

_WHITE = 255
_OVERLAP_PX = TILE_PX // 16
_AT_ONCE = 16


def resized_tiles(ihc: RGB, run: Callable[[RGB], RGB]) -> RGB:
    """Return the segmentation uint8 (H, W, 3) of uint8 (H, W, 3), by `run` on uint8 (N, 512, 512, 3), as 1.1.2 puts it together."""
    height, width = ihc.shape[:2]
    rows, columns = max(round(height / TILE_PX), 1), max(round(width / TILE_PX), 1)
    alone = round(height / TILE_PX) == round(width / TILE_PX) == 1
    overlap = 0 if alone else TILE_PX // 4
    side = TILE_PX + 2 * overlap
    whole = _resized(ihc, columns * TILE_PX, rows * TILE_PX)
    bordered = np.pad(whole, ((overlap, overlap), (overlap, overlap), (0, 0)), constant_values=_WHITE)
    corners = [(row * TILE_PX, column * TILE_PX) for row in range(rows) for column in range(columns)]
    cut = [_resized(bordered[y : y + side, x : x + side], TILE_PX, TILE_PX) for y, x in corners]
    for (y, x), found in zip(corners, run(np.stack(cut)), strict=True):
        back = _resized(found, side, side)
        whole[y : y + TILE_PX, x : x + TILE_PX] = back[overlap : overlap + TILE_PX, overlap : overlap + TILE_PX]
    return _resized(whole, width, height)


def overlapping_tiles(ihc: RGB, run: Callable[[RGB], Pictures]) -> Pictures:
    """Return the pictures uint8 (H, W, C) of uint8 (H, W, 3), by `run` from uint8 (N, 512, 512, 3), as the current program joins them.

    Tiles overlap by 32 px on each side and lie 448 px apart; the last of a row or column ends where the picture ends, and a pixel that is
    the inner part of several is the last one's. A side shorter than 512 px is mirrored, and has no overlap.
    """
    height, width = ihc.shape[:2]
    whole = np.pad(ihc, [*((0, max(TILE_PX - side, 0)) for side in (height, width)), (0, 0)], mode="symmetric")
    places = [(row, column) for row in _places(whole.shape[0]) for column in _places(whole.shape[1])]
    joined: Pictures | None = None
    for begin in range(0, len(places), _AT_ONCE):
        some = places[begin : begin + _AT_ONCE]
        found = run(np.stack([whole[y : y + TILE_PX, x : x + TILE_PX] for (y, _, _), (x, _, _) in some]))
        if joined is None:
            joined = np.zeros((*whole.shape[:2], found.shape[-1]), np.uint8)
        for ((y, top, bottom), (x, left, right)), tile in zip(some, found, strict=True):
            joined[top:bottom, left:right] = tile[top - y : bottom - y, left - x : right - x]
    assert joined is not None  # there is one tile at least
    return joined[:height, :width]


def _places(side: int) -> list[tuple[int, int, int]]:
    """Return (start, from, to) of the tiles along a side of at least 512 px: where a tile begins, and what of the side it is for."""
    last = side - TILE_PX
    starts = dict.fromkeys(min(start, last) for start in range(0, side, TILE_PX - 2 * _OVERLAP_PX))
    return [
        (start, start + _OVERLAP_PX * (start > 0), start + TILE_PX - _OVERLAP_PX * (start < last)) for start in starts
    ]


def _resized(pixels: RGB, width: int, height: int) -> RGB:
    """Return a copy in another size, by Pillow's default filter."""
    from PIL import Image

    picture: Any = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height))
    return np.array(picture)
