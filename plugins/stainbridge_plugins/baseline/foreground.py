"""Nuclei against their surroundings: a threshold that follows the darkness of the neighbourhood, within a bounded reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PASSES = 2
_NARROW, _WIDE = 3.0, 2.5


@dataclass(frozen=True)
class Classes:
    """Density of the ground and of nuclei over the whole picture, and the value between them to start from."""

    ground: float
    nucleus: float
    between: float


@dataclass(frozen=True)
class Smoothing:
    """Standard deviations of the Gaussians, in pixels: of fine detail, of a nucleus's inside, of a neighbourhood."""

    fine: float
    coarse: float
    neighbourhood: float

    @property
    def reach_px(self) -> int:
        """How far a pixel influences the result."""
        widest = max(_radius(self.fine, _NARROW), _radius(self.coarse, _NARROW))
        return widest + _PASSES * _radius(self.neighbourhood, _WIDE)


def classes_of(density: NDArray[np.float32], start: float) -> Classes:
    """Divide the densities of one picture in two by Otsu's method; glass does not take part.

    `start` says where between the ground and Otsu's threshold, 0..1, the search for the local threshold begins.
    """
    from skimage.filters import threshold_otsu

    tissue = density[density > 0.1]
    if tissue.size == 0 or tissue.min() == tissue.max():
        return Classes(ground=0.2, nucleus=0.6, between=0.4)
    otsu = float(threshold_otsu(tissue))
    ground, nucleus = float(tissue[tissue <= otsu].mean()), float(tissue[tissue > otsu].mean())
    return Classes(ground, max(nucleus, ground + 0.1), ground + start * (otsu - ground))


def relief_of(
    density: NDArray[np.float32], classes: Classes, smoothing: Smoothing, edge: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the height above the local threshold and where it is exceeded.

    Parameters
    ----------
    density : float32 (H, W), share of light absorbed
    classes : of the whole picture; they stand in where a neighbourhood has only nuclei or none
    edge : where between ground and nucleus the outline of a nucleus runs, 0..1

    Returns
    -------
    relief : float32 (H, W), 0 at the threshold, about `1 - edge` on an average nucleus
    mask : bool (H, W)
    """
    fine = blurred(density, smoothing.fine, _NARROW)
    body = 0.6 * fine + 0.4 * blurred(density, smoothing.coarse, _NARROW)
    total = blurred(body, smoothing.neighbourhood, _WIDE)
    threshold: NDArray[np.float32] = np.full_like(body, classes.between)
    for _ in range(_PASSES):
        ground, nucleus = _two_means(body, body > threshold, total, classes, smoothing.neighbourhood)
        threshold = ground + np.float32(edge) * (nucleus - ground)
    return (fine - threshold) / np.maximum(nucleus - ground, np.float32(0.05)), body > threshold


def blurred(image: NDArray[np.float32], sigma: float, truncate: float) -> NDArray[np.float32]:
    """Convolve with a Gaussian that ends at `truncate` standard deviations."""
    from scipy.ndimage import gaussian_filter

    smooth: NDArray[np.float32] = gaussian_filter(image, sigma, truncate=truncate)
    return smooth


def _two_means(
    body: NDArray[np.float32],
    above: NDArray[np.bool_],
    total: NDArray[np.float32],
    classes: Classes,
    sigma: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean of the ground and of the nuclei around each pixel, with the picture's means as a weak prior."""
    weak = np.float32(0.02)
    share = blurred(above.astype(np.float32), sigma, _WIDE)
    part = blurred(np.where(above, body, np.float32(0)), sigma, _WIDE)
    nucleus = (part + weak * np.float32(classes.nucleus)) / (share + weak)
    ground = (total - part + weak * np.float32(classes.ground)) / (1 - share + weak)
    return ground, nucleus


def _radius(sigma: float, truncate: float) -> int:
    return int(truncate * sigma + 0.5)
