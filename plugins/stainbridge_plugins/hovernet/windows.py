"""Cut a picture into the network's windows, and put what it returns side by side.

Source: models and infer/tile.py of github.com/vqdang/hover_net: windows a step of the output apart, mirrored at the rim, no blending.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB


def windows_of(picture: RGB, window_px: int, output_px: int) -> RGB:
    """Return the windows of uint8 (H, W, 3), in row-major order: uint8 (n, window_px, window_px, 3)."""
    before = (window_px - output_px) // 2
    rooms = [
        (before, _steps(side, output_px) * output_px + window_px - output_px - before - side)
        for side in picture.shape[:2]
    ]
    padded = np.pad(picture, (*rooms, (0, 0)), mode="reflect")
    view = np.lib.stride_tricks.sliding_window_view(padded, (window_px, window_px), axis=(0, 1))
    chosen = view[::output_px, ::output_px].transpose(0, 1, 3, 4, 2)
    return np.array(chosen, order="C").reshape(-1, window_px, window_px, 3)


def joined(maps: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Return (C, height, width) of the maps (n, C, m, m) of its windows."""
    side = maps.shape[-1]
    rows, columns = _steps(height, side), _steps(width, side)
    grid = maps.reshape(rows, columns, -1, side, side).transpose(2, 0, 3, 1, 4)
    return np.ascontiguousarray(grid.reshape(-1, rows * side, columns * side)[:, :height, :width])


def _steps(length: int, output_px: int) -> int:
    return -(-length // output_px)
