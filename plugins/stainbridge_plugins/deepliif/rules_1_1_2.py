"""From a segmentation to cells as release 1.1.2 does it: clusters of coloured pixels, each of the colour of its majority.

Source: github.com/nadeemlab/DeepLIIF, tag V1.1.2, deepliif/postprocessing.py, `create_basic_segmentation_mask`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB, LabelMap
from stainbridge.errors import MissingExtra

from .cells import POSITIVE_FROM, Cells, Mask, Reading, components, first_pixels, shares, tally

Grey: TypeAlias = NDArray[np.uint8]

OUTLINE = 80
"""Green from which a pixel is outline."""

_BRIGHTENED_ABOVE = 10
_SHARE_OF_IHC = 0.1
_BELOW_HALF = POSITIVE_FROM - 1e-4
# OpenCV's weights of red, green and blue in 15 bits.
_RED, _GREEN, _BLUE, _BITS = 9798, 19235, 3735, 15


@dataclass(frozen=True)
class Rules:
    """Thresholds, with the release's values.

    Parameters
    ----------
    seg_thresh : red or blue above it counts, 0..255
    size_px : clusters of fewer pixels are nothing
    noise_px : holes of fewer pixels are filled
    """

    seg_thresh: int = 80
    size_px: int = 50
    noise_px: int = 20

    def cells(self, ihc: RGB, seg: RGB, *, reading: Reading = "interior") -> Cells:
        """Return the cells of one segmentation, uint8 (H, W, 3) each.

        Under "interior+outline" they grow over the outline's pixels that are connected to them; "refined" are the fragments that
        the refined picture leaves of them.

        Raises
        ------
        MissingExtra
            If the reading is "refined" and OpenCV is not installed.
        """
        positive, negative = coloured(ihc, seg, seg_thresh=self.seg_thresh)
        mask = self._mask(positive, negative)
        labels, n_red, n = _by_colour(mask == 1, mask == 2)
        p = shares(tally(labels, positive, n), tally(labels, negative, n))
        p = np.where(np.arange(n) < n_red, np.maximum(p, POSITIVE_FROM), np.minimum(p, _BELOW_HALF))
        cells = _in_order(Cells(labels, p))
        if reading == "interior+outline":
            return cells.over(_with_outline(cells.labels, seg[..., 1] >= OUTLINE))
        return _fragments(cells, mask) if reading == "refined" else cells

    def mask(self, ihc: RGB, seg: RGB) -> Grey:
        """Return uint8 (H, W): 0 background, 1 positive, 2 negative."""
        return self._mask(*coloured(ihc, seg, seg_thresh=self.seg_thresh))

    def _mask(self, positive: Mask, negative: Mask) -> Grey:
        clusters, n = components(positive | negative)
        reds, blues = tally(clusters, positive, n), tally(clusters, negative, n)
        large = reds + blues >= self.size_px
        called = np.concatenate([[0], np.where(reds >= blues, 1, 2) * large]).astype(np.uint8)[clusters]
        red, blue = self._filled(called == 1), self._filled(called == 2)
        return np.where(blue, np.uint8(2), red.view(np.uint8))

    def _filled(self, mask: Mask) -> Mask:
        holes, n = components(~mask)
        small = tally(holes, ~mask, n) < self.noise_px
        return mask | np.concatenate([[False], small])[holes]


def coloured(ihc: RGB, seg: RGB, *, seg_thresh: int) -> tuple[Mask, Mask]:
    """Return which pixels are positive and which negative, bool (H, W) each."""
    tenth = _SHARE_OF_IHC * grey(ihc)
    red, blue = _brightened(seg[..., 0], tenth), _brightened(seg[..., 2], tenth)
    inside = seg[..., 1] < OUTLINE
    positive = inside & (red > seg_thresh) & (blue <= red)
    return positive, inside & (blue > seg_thresh) & (red < blue)


def grey(pixels: RGB) -> Grey:
    """Return uint8 (H, W) for uint8 (H, W, 3), to the bit as OpenCV converts RGB."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    return ((_RED * red + _GREEN * green + _BLUE * blue + (1 << _BITS >> 1)) >> _BITS).astype(np.uint8)


def _brightened(channel: Grey, tenth: NDArray[np.float64]) -> Grey:
    brighter = np.where(channel > _BRIGHTENED_ABOVE, tenth, 0.0) + channel
    return np.minimum(brighter, 255).astype(np.uint8)


def _by_colour(red: Mask, blue: Mask) -> tuple[LabelMap, int, int]:
    """Return the components of red and then those of blue as int32 (H, W), how many are red, and how many there are."""
    labels, n_red = components(red)
    blues, n_blue = components(blue)
    return np.where(blue, blues + np.int32(n_red), labels), n_red, n_red + n_blue


def _in_order(cells: Cells) -> Cells:
    """Number the cells by their first pixels, reds and blues alike."""
    order = np.argsort(first_pixels(cells.labels, len(cells.p_positive)), kind="stable")
    number = np.zeros(len(order) + 1, np.int32)
    number[order + 1] = np.arange(1, len(order) + 1)
    return Cells(number[cells.labels], cells.p_positive[order])


def _with_outline(labels: LabelMap, outline: Mask) -> LabelMap:
    from scipy.ndimage import distance_transform_edt
    from skimage.segmentation import watershed

    if not labels.any():
        return labels
    relief = distance_transform_edt(labels == 0)
    return watershed(relief, labels, connectivity=2, mask=outline | (labels > 0)).astype(np.int32)


def refined(mask: Grey) -> RGB:
    """Return the refined picture, uint8 (H, W, 3): red and blue cells with green lines of 2 px along their edges.

    Raises
    ------
    MissingExtra
        If OpenCV, which draws the lines, is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise MissingExtra.of("The refined picture of DeepLIIF 1.1.2", "opencv-python-headless", "hovernet") from None
    from skimage.feature import canny

    picture = np.zeros((*mask.shape, 3), np.uint8)
    picture[mask == 1, 0] = picture[mask == 2, 2] = 255
    for channel in (0, 2):
        # Lines around the negative cells follow what the lines around the positive ones have left.
        edges = canny(picture[..., channel], sigma=3).astype(np.uint8)
        lines = cv2.findContours(edges, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)[-2]
        picture = cv2.drawContours(np.ascontiguousarray(picture), lines, -1, (0, 255, 0), 2)
    return picture


def _fragments(cells: Cells, mask: Grey) -> Cells:
    """Return what the refined picture leaves of cells, each fragment with the positivity of the cell that it is from."""
    picture = refined(mask)
    labels, _, n = _by_colour(picture[..., 0] > 0, picture[..., 2] > 0)
    parents = cells.labels.ravel()[first_pixels(labels, n)]
    return _in_order(Cells(labels, cells.p_positive[parents - 1]))
