"""A watershed segmenter for H&E and for IHC without anything learned."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stainbridge import RGB, LabelMap, PluginConfig, Segmenter, Wants

from .appearance import Appearance, appearance, nuclear_density
from .foreground import Classes, Smoothing, classes_of, relief_of
from .splitting import Shape, best_components, flooded, grown, opened, renumbered, with_leftovers, without_small_holes

_MPP = 0.5
# Level sets of the relief, from the whole mask up; above 1.5 a nucleus is twice as dark as its neighbours.
_STEPS = np.concatenate([[-np.inf], np.arange(0.07, 1.55, 0.07)])
# A nucleus whose size nothing is known about.
_USUAL_AREA_UM2 = 40.0
_LOOK_PX = 768


@dataclass(frozen=True)
class _Picture:
    """Everything about the whole picture that a tile must not decide for itself."""

    appearance: Appearance
    classes: Classes
    nucleus_area_um2: float


class Watershed(Segmenter):
    """Finds nuclei as dark, elliptic blobs of any darkness.

    Nuclear density is thresholded against its neighbourhood; of the level sets inside the mask those that look most like ellipses
    seed a watershed. Glass, stains and the usual size of a nucleus are measured once per picture (`calibrate`); uncalibrated, every
    image of a batch is a picture of its own.
    """

    name = "baseline"
    api = 1

    class Config(PluginConfig):
        """Sizes in micrometres; `knee` on clear ground (IHC), and on ground stained by eosin (H&E)."""

        stain: Literal["he", "ihc"] = Field("he", description="what it is given; both stains work under either")
        edge: float = Field(0.5, gt=0, lt=1, description="where the edge of a nucleus runs, 0 ground to 1 nucleus")
        knee: tuple[float, float] = Field((0.5, 0.9), description="lower: pale and dark nuclei count more alike")
        outline_um: float = Field(0.5, ge=0, le=3, description="width of the outline added on clear ground")
        fine_um: float = Field(0.4, gt=0, le=5, description="smoothing of the outline")
        coarse_um: float = Field(1.2, gt=0, le=10, description="smoothing of the inside of a nucleus")
        neighbourhood_um: float = Field(
            4.0, gt=0, le=20, description="standard deviation of the surroundings compared with"
        )
        opening_um: float = Field(1.0, ge=0, le=5, description="tails thinner than twice this are cut off")
        least_area_um2: float = Field(6.0, gt=0, le=1000, description="smallest nucleus")
        most_area_um2: float = Field(300.0, gt=0, le=5000, description="largest seed of a nucleus")
        longest_um: float = Field(30.0, gt=0, le=200, description="longest side of a seed of a nucleus")
        least_share: float = Field(0.3, ge=0, lt=1, description="smallest nucleus as a share of the usual area")

    def __init__(self, config: PluginConfig | None = None, **options: object) -> None:
        super().__init__(config, **options)
        self._picture: _Picture | None = None

    @property
    def wants(self) -> Wants:
        """0.5 um/px, and as much context as one nucleus and its neighbourhood take."""
        longest = math.ceil(self.config.longest_um / _MPP)
        return Wants(stain=self.config.stain, mpp=_MPP, halo=longest + self._smoothing.reach_px)

    def calibrate(self, sample: RGB) -> Self:
        """Return a copy fitted to one picture, uint8 (N, H, W, 3) at the scale of `wants`."""
        fitted = type(self)(self.config, weights=self.weights, device=self.device)
        fitted._picture = self._measured(sample)
        return fitted

    def segment(self, batch: RGB) -> LabelMap:
        """Segment uint8 (N, H, W, 3) into int32 (N, H, W), ids 0..n without gaps per image."""
        return np.stack([self._segment(image, self._picture or self._measured(image[np.newaxis])) for image in batch])

    @property
    def _smoothing(self) -> Smoothing:
        config = self.config
        return Smoothing(config.fine_um / _MPP, config.coarse_um / _MPP, config.neighbourhood_um / _MPP)

    def _measured(self, sample: RGB) -> _Picture:
        seen = appearance(sample)
        density = nuclear_density(sample, seen, _between(self.config.knee, seen.eosin))
        # Dark brown nuclei hide pale blue ones from a threshold that all share: on clear ground it starts low.
        picture = _Picture(seen, classes_of(density, _between((0.7, 1.0), seen.eosin)), _USUAL_AREA_UM2)
        # The first look takes anything of at least the smallest size; what it finds says how large nuclei are here.
        first = replace(picture, nucleus_area_um2=0.0)
        looks = [self._segment(image, first) for image in _middle(sample)]
        areas = np.concatenate([np.bincount(labels.ravel())[1:] for labels in looks]) * _MPP**2
        return replace(picture, nucleus_area_um2=_median_by_weight(areas)) if len(areas) >= 5 else picture

    def _segment(self, image: RGB, picture: _Picture) -> LabelMap:
        config, eosin = self.config, picture.appearance.eosin
        density = nuclear_density(image, picture.appearance, _between(config.knee, eosin))
        relief, mask = relief_of(density, picture.classes, self._smoothing, config.edge)
        relief = np.clip(relief, 0, _STEPS[-1])
        shape = self._shape(picture.nucleus_area_um2)
        mask = without_small_holes(mask, shape.hole_px)
        least_px = max(config.least_area_um2, config.least_share * picture.nucleus_area_um2) / _MPP**2
        seeds = with_leftovers(best_components(relief, mask, _STEPS, shape), mask, replace(shape, least_px=least_px))
        labels = opened(flooded(relief, seeds, mask, shape.reach_px), config.opening_um / _MPP)
        # Where the ground is clear, the outline that is drawn around a nucleus is part of it.
        return grown(renumbered(labels, least_px), round(config.outline_um / _MPP * (1 - eosin)))

    def _shape(self, usual_um2: float) -> Shape:
        known_um2 = usual_um2 or _USUAL_AREA_UM2
        return Shape(
            least_px=max(2.0, 0.05 * usual_um2) / _MPP**2,
            most_px=self.config.most_area_um2 / _MPP**2,
            longest_px=self.config.longest_um / _MPP,
            hole_px=0.3 * known_um2 / _MPP**2,
            reach_px=round(1.25 * math.sqrt(known_um2 / math.pi) / _MPP),
        )


def _middle(sample: RGB) -> RGB:
    """Return the middle of up to four windows: enough nuclei to know their size, at a bounded cost."""
    windows = sample[:: -(-len(sample) // 4)]
    top, left = (max(0, (side - _LOOK_PX) // 2) for side in windows.shape[1:3])
    return windows[:, top : top + _LOOK_PX, left : left + _LOOK_PX]


def _between(pair: tuple[float, float], eosin: float) -> float:
    return pair[0] + (pair[1] - pair[0]) * eosin


def _median_by_weight(areas: NDArray[np.float64]) -> float:
    """Return the area such that half of all nuclear pixels lie in nuclei at least as large."""
    ordered = np.sort(areas)
    return float(ordered[np.searchsorted(np.cumsum(ordered), ordered.sum() / 2)])
