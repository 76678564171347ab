"""Where a patch of a picture would show tissue, from a coarse look at it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..color import optical_density
from ..errors import UnreadablePicture
from ..io.overlay import reduce
from ..records import RGB, Source

UNIT_UM = 4.0
"""Stain is told from glass by means over squares of this side: half a nucleus."""
STAINED_OD = (0.06, 1.5)
"""Mean optical density of stain against the picture's own glass; what is darker is no tissue but a black margin."""
REACH_UM = 12.0
"""Tissue is what lies this near to stain, along either axis: between the nuclei of IHC it is often as pale as glass."""

_GLASS = 200.0  # a picture without any pale pixel has no glass to measure
_WHOLE_PX, _STRIP_PX = 64 << 20, 1024
_PROBES, _PROBE_UNITS = 2048, 8


@dataclass(frozen=True)
class Places:
    """Corners of patches with enough tissue, on a grid of cells.

    Parameters
    ----------
    step_px : side of a cell
    room : rows and columns in which a corner may lie
    cells : int64 (k,), numbers of the cells, row by row, whose patches have enough tissue
    ends : int64 (k,), corners in them and in those before
    area_px : tissue of the picture
    glass : float32 (3,), colour of its glass
    """

    step_px: int
    room: tuple[int, int]
    cells: NDArray[np.int64]
    ends: NDArray[np.int64]
    area_px: float
    glass: NDArray[np.float32]

    @property
    def count(self) -> int:
        """Number of corners."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def corner(self, number: int) -> tuple[int, int]:
        """Return (y, x) of a corner, 0 <= number < count; each belongs to one number."""
        at = int(np.searchsorted(self.ends, number, side="right"))
        row, column = divmod(int(self.cells[at]), -(-self.room[1] // self.step_px))
        width = min(self.step_px, self.room[1] - column * self.step_px)
        down, across = divmod(number - (int(self.ends[at - 1]) if at else 0), width)
        return row * self.step_px + down, column * self.step_px + across


def survey(view: Source, *, patch_px: int, least: float) -> Places:
    """Return where patches have at least the share `least` of tissue.

    A picture of up to 64 megapixels is read whole; of a larger one, small windows on a grid, so that shares are estimates.

    Parameters
    ----------
    view : at the scale of the patches, at least `patch_px` on each side

    Raises
    ------
    UnreadablePicture
        If it is damaged; of a large one, if none of the windows can be read.
    """
    assert view.mpp is not None
    unit = max(1, round(UNIT_UM / view.mpp))
    height, width = view.shape
    if height * width <= _WHOLE_PX:
        step, units = unit, np.concatenate([reduce(strip, unit) for strip in _strips(view, unit)])
        glass = glass_of(units)
        tissue = is_tissue(units, glass).astype(np.float64)
    else:
        step = unit * math.ceil(math.sqrt(height * width / _PROBES) / unit)
        tissue, glass = _probed(view, step, unit)
    room = (height - patch_px + 1, width - patch_px + 1)
    cells = np.flatnonzero(_shares(tissue, step, patch_px, room) >= least)
    rows, columns = np.divmod(cells, -(-room[1] // step))
    corners = np.minimum(step, room[0] - rows * step) * np.minimum(step, room[1] - columns * step)
    return Places(step, room, cells, np.cumsum(corners), float(tissue.mean()) * height * width, glass)


def share_of(pixels: RGB, mpp: float, glass: NDArray[np.float32]) -> float:
    """Return the share of uint8 (H, W, 3) that is tissue."""
    return float(is_tissue(reduce(pixels, max(1, round(UNIT_UM / mpp))), glass).mean())


def is_tissue(units: NDArray[np.uint8], glass: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which of the means (h, w, 3) of squares of `UNIT_UM` are of tissue, bool (h, w)."""
    from scipy.ndimage import maximum_filter

    density = optical_density(units, glass).mean(axis=-1)
    stained = (density >= STAINED_OD[0]) & (density <= STAINED_OD[1])
    found: NDArray[np.bool_] = maximum_filter(stained, 2 * round(REACH_UM / UNIT_UM) + 1, mode="constant")
    return found


def glass_of(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the colour of the brightest hundredth of (..., 3), at least 200 per channel."""
    flat = colours.reshape(-1, 3)
    brightness = flat.sum(axis=1, dtype=np.int64)
    brightest = flat[brightness >= np.percentile(brightness, 99)]
    found: NDArray[np.float32] = np.maximum(np.median(brightest, axis=0), _GLASS).astype(np.float32)
    return found


def _strips(view: Source, unit: int) -> Iterator[RGB]:
    height, width = view.shape
    rows = _STRIP_PX // unit * unit or unit
    for y in range(0, height, rows):
        yield view.read(y, 0, min(rows, height - y), width)


def _probed(view: Source, step: int, unit: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the share of tissue of each cell by a window in its middle, and the colour of glass; 0 where it is damaged."""
    (height, width), side = view.shape, min(step, _PROBE_UNITS * unit)
    probes: dict[tuple[int, int], NDArray[np.uint8]] = {}
    damage: UnreadablePicture | None = None
    for row, y in enumerate(range(0, height, step)):
        for column, x in enumerate(range(0, width, step)):
            top, left = (min(at + (step - side) // 2, end - side) for at, end in ((y, height), (x, width)))
            try:
                probes[row, column] = reduce(view.read(top, left, side, side), unit)
            except UnreadablePicture as error:
                damage = error
    if not probes:
        assert damage is not None
        raise damage
    glass = glass_of(np.stack(list(probes.values())))
    tissue = np.zeros((-(-height // step), -(-width // step)))
    for place, colours in probes.items():
        tissue[place] = is_tissue(colours, glass).mean()
    return tissue, glass


def _shares(tissue: NDArray[np.float64], step: int, patch_px: int, room: tuple[int, int]) -> NDArray[np.float64]:
    """Return the mean tissue of the patch at the corner of each cell in which a corner may lie."""
    sums = np.pad(tissue.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    side = -(-patch_px // step)
    (top, bottom), (left, right) = (_span(-(-room[axis] // step), side, tissue.shape[axis]) for axis in (0, 1))
    boxes = (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )
    found: NDArray[np.float64] = boxes / np.outer(bottom - top, right - left)
    return found


def _span(count: int, side: int, limit: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    first = np.arange(count)
    return first, np.minimum(first + side, limit)
