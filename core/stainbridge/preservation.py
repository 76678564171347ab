"""What a translation keeps: IHC and virtual H&E held side by side, without any truth.

The evaluation of a suite and the choice of an epoch in training use the same functions. Each returns NaN where it is not defined, and
never a warning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .color import DAB, EOSIN, HAEMATOXYLIN, optical_density, unmix
from .errors import ConfigError, ContractViolation, ScaleUnknown
from .interfaces import GRADE_CUTS
from .points import matched_points
from .records import RGB, LabelMap, Source
from .scale import rescale

Points: TypeAlias = NDArray[np.float64]
"""Centroids (y, x), float64 (n, 2)."""
Marker: TypeAlias = Literal["nuclear", "other"]

SMOOTHING_UM = 1.0
"""Standard deviation of the smoothing before densities are compared: chromatin is not what a translation has to keep."""
RADIUS_UM = 3.0
"""How far a nucleus may move and still be the same one: half the width of a small nucleus."""
BROWN_OD = GRADE_CUTS[0]
"""Mean DAB optical density from which a nucleus counts as brown: QuPath's 1+."""

_TISSUE_UM, _TISSUE_OD = 5.0, 0.06
_LEAST_TISSUE_PX = 100
_GLASS = 200.0  # a picture without any pale pixel has no glass to measure
_LEAST_SCALE_OD = 0.1  # no dye at all is not blown up to a full nucleus
_FULL_PERCENTILE = 98.0
_LEAST_CONTRAST_OD = 0.05  # below it blue nuclei and ground cannot be told apart


def side_by_side(ihc: Source, he: Source) -> tuple[RGB, RGB, float]:
    """Read both pictures whole, on the grid of the virtual H&E.

    Returns
    -------
    ihc, he : uint8 (H, W, 3) of one size
    mpp : micrometres per pixel of both

    Raises
    ------
    ScaleUnknown
        If one of them does not know its scale.
    ContractViolation
        If the two are not pictures of the same area.
    """
    if ihc.mpp is None or he.mpp is None:
        raise ScaleUnknown(
            f"{ihc.name!r}: IHC and virtual H&E are compared by micrometres; their pixels measure {ihc.mpp} and {he.mpp}. "
            "Pass the scale where the pictures are opened."
        )
    view = rescale(ihc, he.mpp)
    if max(abs(a - b) for a, b in zip(view.shape, he.shape, strict=True)) > 1:
        raise ContractViolation(
            f"{ihc.name!r}: the IHC is {view.shape} at {he.mpp} micrometres per pixel, its virtual H&E {he.shape}; "
            "they must show the same area."
        )
    height, width = (min(pair) for pair in zip(view.shape, he.shape, strict=True))
    return view.read(0, 0, height, width), he.read(0, 0, height, width), he.mpp


def nuclear_density_agreement(ihc: RGB, he: RGB, *, mpp: float, marker: Marker = "nuclear") -> float:
    """Return the correlation of nuclear stain in the IHC and in the virtual H&E.

    On the IHC haematoxylin counts, and DAB besides; on the H&E haematoxylin. Each dye is measured against the picture's own glass, in
    units of its own full nucleus, and saturates: a pale blue nucleus counts almost as much as a dark brown one. Then both are smoothed
    by 1 um and correlated (Pearson) where the IHC has tissue.

    Parameters
    ----------
    ihc, he : uint8 (H, W, 3) on one grid
    mpp : micrometres per pixel
    marker : "nuclear", or "other" for a marker of cytoplasm or membrane, whose DAB is no nucleus

    Returns
    -------
    -1..1; 1 for densities that are linear in one another, 0 for an H&E without contrast, NaN for an IHC without tissue or contrast
    """
    _check_pair(ihc, he)
    _check_mpp(mpp)
    from scipy.ndimage import gaussian_filter

    tissue = gaussian_filter(optical_density(ihc, _glass(ihc)).mean(axis=-1), _TISSUE_UM / mpp) > _TISSUE_OD
    if tissue.sum() < _LEAST_TISSUE_PX:
        return math.nan
    densities = (_ihc_density(ihc, marker), _share(_haematoxylin(he)))
    before, after = (gaussian_filter(one, SMOOTHING_UM / mpp)[tissue].astype(np.float64) for one in densities)
    return _correlation(before, after)


def count_ratio(n_before: int, n_after: int) -> float:
    """Return nuclei on the virtual H&E per nucleus on the IHC; NaN where there are none on the IHC."""
    return n_after / n_before if n_before else math.nan


def centroid_recall(before: Points, after: Points, *, radius_um: float = RADIUS_UM, mpp: float) -> float:
    """Return the share of the nuclei of the IHC that are found again on the virtual H&E.

    Parameters
    ----------
    before, after : float64 (n, 2) and (m, 2), centroids (y, x) in pixels of one grid
    radius_um : farthest that one may lie from the other; pairs are one to one
    mpp : micrometres per pixel of that grid

    Returns
    -------
    0..1; NaN where there are none on the IHC
    """
    if not len(before):
        return math.nan
    return float(kept(before, after, radius_um=radius_um, mpp=mpp).mean())


def brown_retention(
    before: Points, after: Points, brown: NDArray[np.bool_], *, radius_um: float = RADIUS_UM, mpp: float
) -> float:
    """Return the share of the brown nuclei of the IHC that are found again on the virtual H&E.

    Blue neighbours take part in the pairing, so that a brown nucleus that was erased is not excused by them.

    Parameters
    ----------
    before, after, radius_um, mpp : as for `centroid_recall`
    brown : bool (n,), which of `before`; by `BROWN_OD`, or as a classifier called them

    Returns
    -------
    0..1; NaN where none is brown
    """
    if len(brown) != len(before):
        raise ContractViolation(f"One class is needed for each nucleus; found {len(brown)} for {len(before)}.")
    if not np.any(brown):
        return math.nan
    return float(kept(before, after, radius_um=radius_um, mpp=mpp)[np.asarray(brown, bool)].mean())


def kept(before: Points, after: Points, *, radius_um: float = RADIUS_UM, mpp: float) -> NDArray[np.bool_]:
    """Return which nuclei of the IHC are found again, bool (n,); see `centroid_recall`."""
    _check_mpp(mpp)
    found = np.zeros(len(before), bool)
    found[matched_points(before, after, radius_um / mpp)[:, 0]] = True
    return found


def brown_density(he: RGB, labels: LabelMap, brown: NDArray[np.bool_]) -> float:
    """Return how dark brown nuclei became on the virtual H&E, in units of the blue ones; needs no segmentation of the H&E.

    Parameters
    ----------
    he : uint8 (H, W, 3)
    labels : int32 (H, W), the nuclei of the IHC on the same grid, ids 0..n
    brown : bool (n,)

    Returns
    -------
    Haematoxylin of brown nuclei over that of blue ones, both above the ground between nuclei: 1 for alike, 0 for erased, negative for
    paler than the ground; NaN without nuclei of both kinds, or where blue nuclei do not stand out either.
    """
    amount = _haematoxylin(he)
    if amount.shape != labels.shape:
        raise ContractViolation(f"Virtual H&E {amount.shape} and labels {labels.shape} differ in size.")
    classes = np.append(0, np.where(brown, 2, 1))[labels].ravel()
    pixels = np.bincount(classes, minlength=3)
    if not pixels.all():
        return math.nan
    ground, in_blue, in_brown = np.bincount(classes, amount.ravel(), 3) / pixels
    if in_blue - ground < _LEAST_CONTRAST_OD:
        return math.nan
    return float((in_brown - ground) / (in_blue - ground))


def seam_ratio(
    he: RGB, *, step_px: int | None = None, rows: Sequence[int] = (), columns: Sequence[int] = (), reach_px: int = 16
) -> float:
    """Return the gradient across the seams of a tile grid relative to the gradient beside them.

    The mean absolute difference of neighbouring pixels across every seam, over that across the lines 2 to `reach_px` pixels from it:
    beside, because a picture's texture changes from place to place, and a seam is compared with its own. Texture varies from line to
    line as well: pictures of 512 px without any seam give 0.83 to 1.23 at one line each way. To see less than that, compare with the
    same picture translated in one piece.

    Parameters
    ----------
    he : uint8 (H, W, 3)
    step_px : side of the tiles of a grid that starts at the corner; or
    rows, columns : first row and first column of the tiles that lie beyond a seam
    reach_px : at least 2

    Returns
    -------
    1 for no seam, above for visible ones; NaN where the picture has no seam, or nothing beside it but one flat colour
    """
    if step_px is not None and step_px < 1:
        raise ConfigError(f"The step of a tile grid is at least 1 pixel; found {step_px}.")
    steps = (range(step_px, side, step_px) for side in he.shape[:2]) if step_px else (rows, columns)
    across = [_across(he, list(seams), axis, reach_px) for axis, seams in enumerate(steps)]
    seam, beside = (np.concatenate([pair[index] for pair in across]) for index in (0, 1))
    if not seam.size or not beside.size or not beside.mean() > 0:
        return math.nan
    return float(seam.mean() / beside.mean())


def _across(he: RGB, seams: list[int], axis: int, reach_px: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the differences of neighbours across the seams along one axis, and across the lines beside them."""
    length, at = he.shape[axis], set(seams)
    lines = np.moveaxis(he, axis, 0)

    def difference(positions: set[int]) -> NDArray[np.float64]:
        index = np.array(sorted(positions), np.intp)
        steps: NDArray[np.float64] = np.abs(lines[index].astype(np.float64) - lines[index - 1]).ravel()
        return steps

    inside = {seam for seam in at if 0 < seam < length}
    near = {seam + side * far for seam in inside for far in range(2, reach_px + 1) for side in (-1, 1)}
    # A line next to a seam may share in its step where the picture was resampled.
    close = {seam + by for seam in inside for by in (-1, 0, 1)}
    return difference(inside), difference({line for line in near - close if 0 < line < length})


def _ihc_density(ihc: RGB, marker: Marker) -> NDArray[np.float32]:
    blue, brown = np.moveaxis(np.maximum(unmix(ihc, (HAEMATOXYLIN, DAB), background=_glass(ihc)), 0), -1, 0)
    # What the other dye hides says nothing about how dark a full nucleus of this one is.
    amount = blue / _full(blue[blue > brown])
    if marker == "nuclear":
        amount = amount + brown / _full(brown[brown > blue])
    return _saturated(amount)


def _haematoxylin(he: RGB) -> NDArray[np.float32]:
    amount: NDArray[np.float32] = np.maximum(unmix(he, (HAEMATOXYLIN, EOSIN), background=_glass(he))[..., 0], 0)
    return amount


def _share(amount: NDArray[np.float32]) -> NDArray[np.float32]:
    return _saturated(amount / _full(amount))


def _saturated(amount: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the share of light that is absorbed: 0.9 at a full nucleus."""
    absorbed: NDArray[np.float32] = 1 - np.exp(np.float32(-math.log(10)) * amount)
    return absorbed


def _full(amounts: NDArray[np.float32]) -> np.float32:
    if amounts.size < _LEAST_TISSUE_PX:
        return np.float32(1.0)
    return np.float32(max(float(np.percentile(amounts, _FULL_PERCENTILE)), _LEAST_SCALE_OD))


def _glass(rgb: RGB) -> NDArray[np.float32]:
    """Return the colour of the brightest hundredth, at least 200 per channel."""
    brightness = rgb.sum(axis=-1, dtype=np.int64)
    brightest = rgb[brightness >= np.percentile(brightness, 99)]
    colour: NDArray[np.float32] = np.maximum(np.median(brightest, axis=0), _GLASS).astype(np.float32)
    return colour


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if a.std() < 1e-3:
        return math.nan
    if b.std() < 1e-3:
        return 0.0
    return float(np.clip(np.mean((a - a.mean()) * (b - b.mean())) / (a.std() * b.std()), -1, 1))


def _check_pair(ihc: RGB, he: RGB) -> None:
    if ihc.shape != he.shape or ihc.ndim != 3 or ihc.shape[2] != 3:
        raise ContractViolation(f"IHC and virtual H&E must be (height, width, 3) alike; found {ihc.shape}, {he.shape}.")


def _check_mpp(mpp: float) -> None:
    if not (math.isfinite(mpp) and mpp > 0):
        raise ConfigError(f"Micrometres per pixel must be a positive number; found {mpp!r}.")
