"""Tiles as release 1.1.2 cuts them: the picture is resized to whole tiles, and tiles with their overlap are resized to 512 px.

Source: github.com/nadeemlab/DeepLIIF, tag V1.1.2, deepliif/models/__init__.py and deepliif/util. What is larger than about one tile and a
half is thereby seen at two thirds of its scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stainbridge import RGB

from .networks import TILE_PX

_WHITE = 255


def segmentation(ihc: RGB, run: Callable[[RGB], RGB]) -> RGB:
    """Return the segmentation uint8 (H, W, 3) of uint8 (H, W, 3), by `run` on uint8 (N, 512, 512, 3)."""
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


def _resized(pixels: RGB, width: int, height: int) -> RGB:
    """Return a copy in another size, by Pillow's default filter."""
    from PIL import Image

    picture: Any = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height))
    return np.array(picture)
