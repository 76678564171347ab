"""Nuclei as dark blobs: a local threshold finds their pixels, the Laplacian of a Gaussian tells them apart."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from stainbridge import RGB, LabelMap, PluginConfig, Segmenter, Wants
from stainbridge.color import optical_density

MPP = 0.5
"""Micrometres per pixel at which it works; stainbridge resamples to it and brings the labels back."""


class TEMPLATE_CLASS(Segmenter):
    """Finds blue and brown nuclei alike, by how much darker than their surroundings they are."""

    name = "TEMPLATE_NAME"
    api = 1

    class Config(PluginConfig):
        """Size and contrast of a nucleus."""

        diameter_um: float = Field(8.0, gt=1, le=30, description="typical diameter of a nucleus")
        contrast_od: float = Field(0.05, gt=0, le=3, description="optical density in red above the surroundings")
        area_minimum_um2: float = Field(12.0, ge=0, description="smaller objects are left out")
        window_um: float = Field(40.0, gt=4, le=200, description="side of the surroundings of a pixel")

    @property
    def wants(self) -> Wants:
        """IHC at 0.5 um per pixel, with a margin as wide as its filters reach."""
        reach_um = self.config.window_um / 2 + 2 * self.config.diameter_um
        return Wants(stain="ihc", mpp=MPP, halo=math.ceil(reach_um / MPP))

    def segment(self, batch: RGB) -> LabelMap:
        """Segment uint8 (N, H, W, 3) into int32 (N, H, W); ids 0..n without gaps per image."""
        return np.stack([self._one(rgb) for rgb in batch])

    def _one(self, rgb: RGB) -> LabelMap:
        from scipy.ndimage import gaussian_filter, gaussian_laplace, uniform_filter
        from skimage.feature import peak_local_max
        from skimage.segmentation import watershed

        config = self.config
        # Haematoxylin absorbs most in red, and DAB absorbs there too: blue nuclei stay dark among brown cytoplasm.
        density = optical_density(rgb)[..., 0]
        around = uniform_filter(density, 2 * round(config.window_um / MPP / 2) + 1)
        nuclear = gaussian_filter(density, 0.5 / MPP) > around + config.contrast_od
        # A disc answers most strongly to the Laplacian whose sigma is its radius over the square root of two.
        blobs = -gaussian_laplace(density, config.diameter_um / 2 / math.sqrt(2) / MPP)
        apart_px = max(1, round(config.diameter_um / 2 / MPP))
        peaks = peak_local_max(blobs, min_distance=apart_px, labels=nuclear.astype(int), exclude_border=False)
        seeds = np.zeros(density.shape, np.int32)
        seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        return _large_enough(watershed(-blobs, seeds, mask=nuclear), config.area_minimum_um2 / MPP**2)


def _large_enough(labels: NDArray[np.integer], area_px: float) -> LabelMap:
    """Return the labels of at least this area, numbered anew without gaps."""
    area = np.bincount(labels.ravel())
    kept = area >= area_px
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]
