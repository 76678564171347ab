"""Cellpose as a segmenter: a network from a file, at the scale at which a nucleus has the size that it was trained on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field

from stainbridge import RGB, LabelMap, PluginConfig, Segmenter, Wants
from stainbridge.errors import ConfigError, WeightsUnavailable

from .drawing import Drawing
from .networks import Network, load
from .scaling import Range, fit, planes, scaled

Channel = Annotated[int, Field(ge=0, le=3)]


class Cellpose(Segmenter):
    """Runs a network of cellpose 3.x or 4.x, whichever is installed, on grey or colour planes between two percentiles.

    Source: Stringer et al., Cellpose: a generalist algorithm for cellular segmentation, Nature Methods 18:100-106, 2021.
    """

    name = "cellpose"
    api = 1

    class Config(PluginConfig):
        """What is dark, how large a nucleus is, and cellpose's own thresholds."""

        path: Path | None = Field(None, description="a network by path, where no registered model is named")
        stain: Literal["ihc", "he"] = Field(
            "he", description="what it is given; it tells them apart by brightness alone"
        )
        # Nuclei in sections are 5 to 10 um across, a small lymphocyte's about 7; 7.5 is also 30 px of a 40x scan.
        nucleus_diameter_um: float = Field(7.5, gt=1, le=50, description="mean diameter of a nucleus")
        network_diameter_px: float | None = Field(
            None, gt=1, le=200, description="nuclei in training; None: what the file says, 30 where it says nothing"
        )
        mpp: float | None = Field(
            None, gt=0, description="scale at which masks are drawn; None: at which nuclei are as in training"
        )
        channels: tuple[Channel, Channel] = Field(
            (0, 0), description="first and second plane of a 3.x network: 0 grey (second: none), 1 red, 2 green, 3 blue"
        )
        invert: bool = Field(
            True, description="nuclei are dark; for a network of 4.x, which knows stained tissue, false"
        )
        percentiles: tuple[float, float] = Field((1.0, 99.0), description="grey levels that become 0 and 1")
        scaling: Literal["picture", "tile"] = Field(
            "picture", description="whose percentiles: the whole picture's, a tile's"
        )
        least_contrast: float = Field(
            25.0, gt=0, le=255, description="least grey levels from 0 to 1: noise of empty glass is not blown up"
        )
        flow_threshold: float = Field(0.4, ge=0, description="largest error of a mask's flows; 0: any")
        cellprob_threshold: float = Field(0.0, ge=-20, le=20, description="logit above which a pixel is nucleus")
        min_area_um2: float = Field(10.0, ge=0, description="smaller objects are dropped")
        niter: int = Field(0, ge=0, le=10_000, description="steps along the flows; 0: cellpose's own number")
        resample: bool = Field(True, description="with mpp: follow the flows at that scale, not at the network's")
        tiles: int = Field(8, ge=1, description="tiles of 224 px (256 px) that the network sees at once")

    def __init__(
        self,
        config: PluginConfig | None = None,
        *,
        weights: Mapping[str, Path] | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(config, weights=weights, device=device)
        self._limits: Range | None = None
        self._network = self._load()

    @property
    def wants(self) -> Wants:
        """Pictures at the scale of `mpp`, two nuclei of context."""
        return Wants(self.config.stain, mpp=self._mpp, halo=round(2 * self.config.nucleus_diameter_um / self._mpp))

    @property
    def batch_size(self) -> int:
        """One on a CPU, where several gain nothing; elsewhere four."""
        return 1 if self.device == "cpu" else 4

    def calibrate(self, sample: RGB) -> Self:
        """Return a copy with the percentiles of one picture, uint8 (N, H, W, 3); the network is shared."""
        fitted = copy.copy(self)
        if self.config.scaling == "picture":
            fitted._limits = self._fit(planes(sample, self._channels))
        return fitted

    def segment(self, batch: RGB) -> LabelMap:
        """Segment uint8 (N, H, W, 3) into int32 (N, H, W); without `calibrate` each picture has its own percentiles."""
        values = planes(batch, self._channels)
        seen = [scaled(one, self._limits or self._fit(one), invert=self.config.invert) for one in values]
        labels = self._network.label(np.stack(seen), self._drawing)
        least_px = self.config.min_area_um2 / self._mpp**2
        return np.stack([_of_area(one, least_px) for one in labels])

    def _load(self) -> Network:
        if self.config.path is not None:
            path = self.config.path.expanduser()
            self.weights[path.name] = path
        if not self.weights:
            raise WeightsUnavailable(
                "Segmenter 'cellpose' has no network.\n"
                "Ask for a model: --segmenter cellpose/cyto (see: stainbridge models list), "
                "or name a file of cellpose: --set segmenter.path=FILE"
            )
        if len(self.weights) > 1:
            raise ConfigError(
                f"Segmenter 'cellpose' runs one network; given are {', '.join(sorted(self.weights))}.\n"
                "Leave out either the model or 'path'."
            )
        (path,) = self.weights.values()
        return load(path, device=self.device, diameter_px=self.config.network_diameter_px)

    @property
    def _mpp(self) -> float:
        if self.config.mpp is not None:
            return float(self.config.mpp)
        return float(self.config.nucleus_diameter_um / self._network.diameter_px)

    @property
    def _channels(self) -> tuple[int, ...]:
        if self._network.channels == 3:
            return (1, 2, 3)
        first, second = self.config.channels
        return (first, second) if second else (first,)

    @property
    def _drawing(self) -> Drawing:
        config, mpp = self.config, self._mpp
        return Drawing(
            rescale=1.0 if config.mpp is None else self._network.diameter_px * mpp / config.nucleus_diameter_um,
            flow_threshold=config.flow_threshold,
            cellprob_threshold=config.cellprob_threshold,
            niter=config.niter,
            resample=config.resample,
            tiles=config.tiles,
        )

    def _fit(self, values: np.ndarray) -> Range:
        config = self.config
        return fit(values, config.percentiles, least=config.least_contrast, dark=config.invert)


def _of_area(labels: LabelMap, least_px: float) -> LabelMap:
    """Return the labels of at least so many pixels, numbered 1..n in the same order."""
    area = np.bincount(labels.ravel())
    kept = (area >= least_px) & (area > 0)
    kept[0] = False
    return (np.cumsum(kept) * kept).astype(np.int32)[labels]
