"""From a segmentation to cells as the current release (1.2.6) does it: everything that a coloured line encloses.

Source: github.com/nadeemlab/DeepLIIF, deepliif/postprocessing.py, `compute_final_results`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB, LabelMap

from .cells import Cells, Mask, Reading, components, first_pixels, shares, tally

OUTLINE = 80
"""Green above which a pixel does not count."""

_BINS = 500
# Smallest, usual and largest side of the smallest cell, in pixels, from this many micrometres per pixel down.
_SIDES = {"40x": (4, 7, 10), "20x": (3, 4, 6), "10x": (2, 2, 3)}
_UP_TO_MPP = {"40x": 0.375, "20x": 0.75, "10x": math.inf}


@dataclass(frozen=True)
class Rules:
    """Thresholds, with the release's values.

    Parameters
    ----------
    seg_thresh : red and blue together above it count, 0..510
    noise_px : components of up to this many pixels are not even looked at
    large_noise_px : nor those of this many and more
    size_px : components of up to this many pixels are no cells; None derives it from the sizes
    size_upper_px : nor those of this many and more
    mpp : micrometres per pixel, for what is derived
    """

    seg_thresh: int = 120
    noise_px: int = 4
    large_noise_px: int | None = None
    size_px: int | None = None
    size_upper_px: int | None = None
    mpp: float = 0.25

    def cells(self, ihc: RGB, seg: RGB, *, reading: Reading = "interior") -> Cells:
        """Return the cells of one segmentation, uint8 (H, W, 3), as they are counted or with the outline that is drawn around them.

        The IHC is not looked at. "refined" is "interior": outlines are drawn outside of cells.
        """
        everything, sizes = self.components(seg)
        size_px = size_threshold(sizes, mpp=self.mpp) if self.size_px is None else self.size_px
        keep = sizes > size_px
        if self.size_upper_px is not None:
            keep &= sizes < self.size_upper_px
        cells = Cells(everything.labels, everything.p_positive, size_px).kept(keep)
        if reading != "interior+outline":
            return cells
        return cells.over(_over(cells.labels, self._outline(seg, cells.labels)))

    def components(self, seg: RGB) -> tuple[Cells, NDArray[np.int64]]:
        """Return what may be cells, and the size of each in pixels, int64 (n,)."""
        positive, negative = coloured(seg, seg, seg_thresh=self.seg_thresh)
        labels, n = components(_closed(positive | negative))
        sizes = np.bincount(labels.ravel(), minlength=n + 1)[1:]
        p = shares(tally(labels, positive, n), tally(labels, negative, n))
        keep = sizes > self.noise_px
        if self.large_noise_px is not None:
            keep &= sizes < self.large_noise_px
        return Cells(labels, p).kept(keep), sizes[keep]

    def refined(self, seg: RGB) -> RGB:
        """Return the refined picture, uint8 (H, W, 3): red and blue cells in green outlines."""
        cells = self.cells(seg, seg)
        called = np.concatenate([[0], np.where(cells.positive, 1, 2)])[cells.labels]
        picture = np.zeros(seg.shape, np.uint8)
        picture[..., 0], picture[..., 2] = 255 * (called == 1), 255 * (called == 2)
        picture[self._outline(seg, cells.labels)] = 0, 255, 0
        return picture

    def _outline(self, seg: RGB, labels: LabelMap) -> Mask:
        """Return the green of the refined picture: three pixels outside of the cells, and the first pixel of each cell."""
        outside = ~_closed(np.logical_or(*coloured(seg, seg, seg_thresh=self.seg_thresh)))
        firsts = np.zeros(labels.shape, bool)
        firsts.ravel()[first_pixels(labels, int(labels.max(initial=0)))] = True
        # The release marks outside pixels as it comes by; from the pixel where it starts in a cell, it does not look around.
        outline = firsts | (outside & (_straight((labels > 0) & ~firsts) > 0))
        for _ in range(2):
            outline |= outside & (_around(outline) > 0)
        return outline


def coloured(ihc: RGB, seg: RGB, *, seg_thresh: int) -> tuple[Mask, Mask]:
    """Return which pixels are positive and which negative, bool (H, W) each; the IHC is not looked at."""
    red, blue = seg[..., 0], seg[..., 2]
    counts = (red.astype(np.int32) + blue > seg_thresh) & (seg[..., 1] <= OUTLINE)
    return counts & (red >= blue), counts & (red < blue)


def size_threshold(sizes: NDArray[np.int64], *, mpp: float) -> int:
    """Return the size in pixels that parts noise from cells: the first valley in the density of the sides, within limits.

    The density is that of the square roots of the sizes, with Gaussian kernels of 1 px, at 500 points; 0 for fewer than two sizes.
    """
    if len(sizes) < 2:
        return 0
    sides = np.sqrt(sizes)
    step = (sides.max() + 1) / _BINS
    kernels = np.exp(-((np.arange(_BINS)[:, None] * step - sides) ** 2) / 2)
    density = (kernels.sum(1) / (math.sqrt(2 * math.pi) * len(sides))).astype(np.float32)
    valleys = np.flatnonzero((density[1:-1] < density[:-2]) & (density[1:-1] < density[2:]))
    side = valleys[0] * step if len(valleys) else 0.0
    least, usual, most = _SIDES[next(name for name, limit in _UP_TO_MPP.items() if mpp <= limit)]
    if side > most:
        side = usual
    return round(max(side, least) ** 2)


def brightness(marker: RGB) -> NDArray[np.uint8]:
    """Return the grey of a marker picture, uint8 (..., H, W), as the release has it in the picture that it writes."""
    red, green, blue = (marker[..., channel].astype(np.int32) for channel in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16).astype(np.uint8)


def marker_threshold(marker: NDArray[np.uint8]) -> int:
    """Return the release's own threshold of the marker: 90 % of the way from its 0.1th to its 99.9th percentile, zeros left out."""
    lit = marker[marker > 0]
    if not lit.size:
        return 0
    low, high = (round(float(np.percentile(lit, percent))) for percent in (0.1, 99.9))
    return round((high - low) * 0.9) + low


def _closed(mask: Mask) -> Mask:
    """Return the mask and what it encloses: pixels from which no way, straight from pixel to pixel, leads to the border."""
    from scipy.ndimage import label

    outside, n = label(~mask)
    reached = np.zeros(n + 1, bool)
    for border in (outside[0], outside[-1], outside[:, 0], outside[:, -1]):
        reached[border] = True
    reached[0] = False
    return ~reached[outside]


def _straight(values: NDArray[Any]) -> NDArray[Any]:
    """Return the largest of each pixel of (H, W) and the four beside it."""
    wide = np.pad(values, 1)
    rows = np.maximum(wide[:-2, 1:-1], wide[2:, 1:-1])
    return np.maximum(np.maximum(rows, np.maximum(wide[1:-1, :-2], wide[1:-1, 2:])), values)


def _around(values: NDArray[Any]) -> NDArray[Any]:
    """Return the largest of each pixel of (H, W) and the eight around it."""
    wide = np.pad(values, 1)
    wide = np.maximum(np.maximum(wide[:-2], wide[1:-1]), wide[2:])
    return np.maximum(np.maximum(wide[:, :-2], wide[:, 1:-1]), wide[:, 2:])


def _over(labels: LabelMap, outline: Mask) -> LabelMap:
    """Return the labels grown over their outline; where two meet, to the later."""
    for widened in (_straight, _around, _around):
        labels = np.where(outline & (labels == 0), widened(labels), labels)
    return labels
