"""From HoVer-Net's maps to labels.

Source: Graham et al., Medical Image Analysis 58 (2019), section on post-processing, and models/hovernet/post_proc.py of
github.com/vqdang/hover_net. With `normalisation = "original"` the labels are the original's pixel for pixel, but for pixels that
two nuclei reach at exactly the same depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge import LabelMap
from stainbridge.errors import MissingExtra

from .runs import runs_of

Normalisation: TypeAlias = Literal["original", "fixed"]
"""What a gradient of the distances is measured against: the extremes of the map that is given, or constants."""

_KERNEL_PX = 21
_STRIP_PX = 172
_GAIN = 2.0**39
"""Response of the 21 px Sobel kernel to a slope of 1 per pixel."""
FALL, RISE = -0.25, 0.15
"""Slopes per pixel that "fixed" stretches between: about the medians of the extremes in maps of real H&E at 0.2 to 0.25 um per pixel
(-0.24 between two nuclei, 0.17 in a small one), and such that a stretch without slope is not an edge."""


@dataclass(frozen=True)
class Rules:
    """What makes a nucleus.

    Parameters
    ----------
    normalisation : "original": gradients are stretched between the smallest and the largest of the map that is given, so a nucleus
        depends on the extent of that map and on whatever else lies in it; "fixed": between two constants, so that it does not
    least_probability : a pixel is nucleus from this value up
    edge : a pixel parts two nuclei from this value up, 0..1
    least_px : smaller pieces of foreground, and smaller cores of nuclei, are left out
    """

    normalisation: Normalisation = "original"
    least_probability: float = 0.5
    edge: float = 0.4
    least_px: int = 10


def find_instances(nucleus: NDArray[np.float32], distances: NDArray[np.float32], rules: Rules) -> LabelMap:
    """Return the nuclei of one picture as int32 (H, W), ids 0..n without gaps.

    Parameters
    ----------
    nucleus : float32 (H, W), probability that a pixel is in a nucleus
    distances : float32 (2, H, W), horizontal and vertical distance to the centre, about -1..1
    rules : thresholds
    """
    cv2 = require_cv2()
    pieces = _pieces(cv2, nucleus >= rules.least_probability, rules.least_px)
    background = pieces == 0
    if background.all():
        return np.zeros(nucleus.shape, np.int32)
    edges = _edges(cv2, distances, rules.normalisation)
    np.copyto(edges, np.float32(1), where=background)
    inner = _filled(cv2, edges < np.float32(rules.edge))
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    markers = _pieces(cv2, cv2.morphologyEx(inner, cv2.MORPH_OPEN, ellipse), rules.least_px)
    markers = _within(markers, background)
    # In double precision, as the original: rounded depths would be equal where they are not.
    height = np.subtract(edges, 1.0, dtype=np.float64)
    return _flooded(cv2, cv2.GaussianBlur(height, (3, 3), 0), markers, pieces)


def _pieces(cv2: Any, mask: NDArray[Any], least_px: int) -> LabelMap:
    """Label what hangs together over sides and has `least_px`; int32, ids 0..n without gaps."""
    _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    runs = runs_of(labels)
    return _numbered(labels, np.bincount(runs.value, runs.length, minlength=1) >= least_px)


def _edges(cv2: Any, distances: NDArray[np.float32], normalisation: Normalisation) -> NDArray[np.float32]:
    """Return float32 (H, W), 1 where the distances fall most steeply and 0 where they rise most."""
    across, down = (_rise(cv2, plane, axis, normalisation) for axis, plane in enumerate(distances))
    rise = np.minimum(across, down, out=across)
    edges: NDArray[np.float32] = np.subtract(np.float32(1), rise, out=rise)
    return edges


def _rise(cv2: Any, plane: NDArray[np.float32], axis: int, normalisation: Normalisation) -> NDArray[np.float32]:
    """Return the slope of a distance along its own axis as float32 (H, W), 0..1."""
    if normalisation == "original":
        return _unit_range(cv2, _slope(cv2, _unit_range(cv2, plane), axis))
    slope = _slope(cv2, plane, axis)
    slope *= 1 / (_GAIN * (RISE - FALL))
    slope -= FALL / (RISE - FALL)
    return np.clip(slope, 0, 1, out=slope).astype(np.float32)


def _slope(cv2: Any, plane: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    """Return the Sobel derivative along x (0) or y (1), times the gain, in strips that fit a processor's nearest cache."""
    reach, width = _KERNEL_PX // 2, plane.shape[1]
    framed = cv2.copyMakeBorder(plane, 0, 0, reach, reach, cv2.BORDER_REFLECT_101)
    slope = np.empty(plane.shape)
    for left in range(0, width, _STRIP_PX):
        right = min(left + _STRIP_PX, width)
        strip = cv2.Sobel(framed[:, left : right + 2 * reach], cv2.CV_64F, 1 - axis, axis, ksize=_KERNEL_PX)
        slope[:, left:right] = strip[:, reach : reach + right - left]
    return slope


def _unit_range(cv2: Any, values: NDArray[Any]) -> NDArray[np.float32]:
    """Stretch between the extremes of the whole map."""
    unit: NDArray[np.float32] = cv2.normalize(values, None, 0, 1, cv2.NORM_MINMAX, cv2.CV_32F)
    return unit


def _filled(cv2: Any, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Fill what cannot be reached from the border over sides; 0 or 1."""
    framed = cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(framed, None, (0, 0), 2, flags=4)
    filled: NDArray[np.uint8] = (framed[1:-1, 1:-1] != 2).view(np.uint8)
    return filled


def _flooded(cv2: Any, height: NDArray[np.float64], markers: LabelMap, pieces: LabelMap) -> LabelMap:
    """Give every pixel of `pieces` to a marker, from the lowest up; a piece without a marker vanishes.

    Only where two markers share a piece must it be flooded, and there only outside the insides of the markers.
    """
    from skimage.segmentation import watershed

    runs = runs_of(markers)
    homes = pieces.ravel()[runs.first]
    owner = np.zeros(int(pieces.max(initial=0)) + 1, np.int32)
    owner[homes] = runs.value
    owner[homes[owner[homes] != runs.value]] = -1
    labels = np.take(owner, pieces)
    contested = labels < 0
    if not contested.any():
        return labels
    np.copyto(labels, markers, where=contested)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    settled = cv2.erode((labels > 0).view(np.uint8), cross).view(bool)
    open_ = contested & ~settled
    flood = watershed(height, markers=np.where(open_, labels, 0), mask=open_)
    np.copyto(labels, flood, where=open_, casting="same_kind")
    return labels


def _within(markers: LabelMap, background: NDArray[np.bool_]) -> LabelMap:
    """Cut off what lies in holes of the foreground; a marker may vanish."""
    outside = (markers > 0) & background
    if not outside.any():
        return markers
    markers = np.where(outside, 0, markers)
    return _numbered(markers, np.bincount(markers.ravel()) > 0)


def _numbered(labels: LabelMap, kept: NDArray[np.bool_]) -> LabelMap:
    """Return the labels whose ids are kept, numbered 1..n in their order."""
    kept[0] = False
    return labels if kept[1:].all() else np.take(np.cumsum(kept, dtype=np.int32) * kept, labels)


def require_cv2() -> Any:
    """Import OpenCV and return it; raises MissingExtra."""
    try:
        import cv2
    except ImportError:
        raise MissingExtra.of("hovernet", "opencv-python-headless", "hovernet") from None
    return cv2
