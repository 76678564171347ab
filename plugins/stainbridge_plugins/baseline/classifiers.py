"""Positivity by colour, on the original IHC: HistomicsTK's pixel rule per nucleus, and mean DAB optical density."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from stainbridge import RGB, LabelMap, PluginConfig, PositivityClassifier, Wants
from stainbridge.color import DAB, HAEMATOXYLIN, unmix

from .hsi import PositivePixels, is_positive, mean_hsi, positive_pixels


class Hsi(PositivityClassifier):
    """Calls a nucleus positive by the share of its pixels that HistomicsTK's rule calls positive."""

    name = "hsi"
    api = 1

    class Config(PluginConfig, PositivePixels):
        """The pixel rule, and how pixels become a nucleus."""

        rule: Literal["fraction", "dilated", "mean"] = Field(
            "fraction",
            description="fraction: share of positive pixels in the mask; dilated: the same in the dilated mask, "
            "for membrane stains; mean: the mean colour of the mask inside the band, P is 1 or 0",
        )
        threshold: float = Field(0.3, ge=0, le=1, description="a nucleus is positive from this P up")
        dilate_px: int = Field(4, ge=1, le=50, description="rule 'dilated': how far the mask grows")

    @property
    def wants(self) -> Wants:
        """IHC on its own grid; the context that a dilated mask needs."""
        return Wants(stain="ihc", halo=self.config.dilate_px if self.config.rule == "dilated" else 0)

    @property
    def threshold(self) -> float:
        """Operating point from the configuration."""
        return float(self.config.threshold)

    def classify(self, ihc: RGB, labels: LabelMap) -> NDArray[np.float64]:
        """Return the positive share (0 or 1 under rule 'mean') per label, float64 (n,)."""
        n = int(labels.max(initial=0))
        if n == 0:
            return np.zeros(0)
        if self.config.rule == "dilated":
            labels = _grow(labels, self.config.dilate_px)
        inside = labels > 0
        groups = labels[inside]
        if self.config.rule == "mean":
            return is_positive(mean_hsi(ihc[inside], groups, n), self.config).astype(np.float64)
        return _mean_per_label(positive_pixels(ihc[inside], self.config) > 0, groups, n)


class Dab(PositivityClassifier):
    """Calls a nucleus positive by its mean DAB optical density, as QuPath does.

    P(positive) is the share of light that the mean density absorbs, 1 - 10**(-od): 0.37, 0.60 and 0.75 at 0.2, 0.4 and 0.6.
    Its thresholds grade the nuclei 1+, 2+ and 3+ unless the run has `grade_cuts` of its own.
    """

    name = "dab"
    api = 1

    class Config(PluginConfig):
        """QuPath's thresholds by default."""

        thresholds_od: tuple[float, float, float] = Field(
            (0.2, 0.4, 0.6), description="mean DAB optical density from which a nucleus is 1+ (positive), 2+ and 3+"
        )
        background: float = Field(255.0, gt=1, le=255, description="brightness of glass, 0..255")

        @field_validator("thresholds_od")
        @classmethod
        def _increasing(cls, cuts: tuple[float, float, float]) -> tuple[float, float, float]:
            if not 0 < cuts[0] < cuts[1] < cuts[2] <= 3:
                raise ValueError("must be three increasing optical densities, above 0 and up to 3")
            return cuts

    @property
    def wants(self) -> Wants:
        """IHC on its own grid."""
        return Wants(stain="ihc")

    @property
    def threshold(self) -> float:
        """The share of light absorbed at the threshold of 1+."""
        return float(_absorbed(np.float64(self.config.thresholds_od[0])))

    @property
    def grade_cuts(self) -> tuple[float, float, float]:
        """Its thresholds."""
        return self.config.thresholds_od

    def classify(self, ihc: RGB, labels: LabelMap) -> NDArray[np.float64]:
        """Return the share of light that DAB absorbs per label, float64 (n,)."""
        return _absorbed(np.maximum(self.densities(ihc, labels), 0.0))

    def densities(self, ihc: RGB, labels: LabelMap) -> NDArray[np.float64]:
        """Return the mean DAB optical density per label, float64 (n,); slightly negative where a nucleus is purely blue."""
        inside = labels > 0
        dab = unmix(ihc[inside], (HAEMATOXYLIN, DAB), background=self.config.background)[:, 1]
        return _mean_per_label(dab, labels[inside], int(labels.max(initial=0)))


def _absorbed(density: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 - 10.0**-density


def _mean_per_label(values: NDArray[np.generic], groups: LabelMap, n: int) -> NDArray[np.float64]:
    size = np.maximum(np.bincount(groups, minlength=n + 1)[1:], 1)
    return np.bincount(groups, values, n + 1)[1:] / size


def _grow(labels: LabelMap, distance_px: int) -> LabelMap:
    """Grow every label by `distance_px`, up to the middle between neighbours."""
    from skimage.segmentation import expand_labels

    return expand_labels(labels, distance_px)
