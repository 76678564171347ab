"""StarDist as a segmenter."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from stainbridge import RGB, LabelMap, PluginConfig, Segmenter, Wants
from stainbridge.errors import ConfigError, WeightsCorrupt
from stainbridge.torchkit import Precision

from . import group_network
from .design import Design, up_to
from .files import ModelFiles, model_files
from .instances import Thresholds, without_gaps
from .scaling import Limits, Scaling


class StarDist(Segmenter):
    """Finds nuclei as star-convex polygons (Schmidt et al., MICCAI 2018)."""

    name = "stardist"
    api = 1

    class Config(PluginConfig):
        """The model, what it is given, and what it finds."""

        model: str | None = Field(
            None,
            description="a model of your own: a folder with config.json and weights_best.h5, such a .h5 file, or a "
            "stardist_pytorch state dict (.t7, .pt, .pth); none takes the registered one",
        )
        backend: Literal["torch", "tensorflow"] = Field(
            "torch", description="what runs the network: torch, or the original on TensorFlow; both find the same"
        )
        stain: Literal["he", "ihc"] = Field("he", description="what it is given: H&E or virtual H&E, or the IHC itself")
        mpp: float = Field(0.25, gt=0, le=10, description="micrometres per pixel that the model was trained on")
        grey: Literal["inverted", "mean"] = Field(
            "inverted",
            description="a model of one channel gets 255 less the mean of the channels, as nuclei are dark in bright "
            "field and bright in fluorescence, or the mean itself",
        )
        pmin: float = Field(1.0, ge=0, lt=100, description="percentile of the grey levels that becomes 0")
        pmax: float = Field(99.8, gt=0, le=100, description="percentile of the grey levels that becomes 1")
        channels: Literal["jointly", "separately"] = Field(
            "jointly",
            description="percentiles of all channels together, which leaves the colour as it is and is csbdeep's default, "
            "or of each, which evens out the stain",
        )
        scaling: Literal["picture", "tile"] = Field(
            "picture", description="percentiles of the whole picture, or of each tile, which leaves seams"
        )
        least_span: float = Field(
            25.0,
            ge=0,
            le=255,
            description="least grey levels between the percentiles, so that glass is not "
            "stretched to tissue; a tile that spans less in all holds no nuclei",
        )
        prob_thresh: float | None = Field(None, gt=0, lt=1, description="least probability; none takes the model's own")
        nms_thresh: float | None = Field(
            None, gt=0, lt=1, description="most overlap, as a share of the smaller; none takes the model's own"
        )
        precision: Precision = Field(
            "fp32",
            description="of the torch backend: fp32, or on CUDA also bf16 or fp16, which move outlines by a pixel",
        )
        batch_size: int = Field(4, ge=1, le=64, description="tiles at once on a GPU; a CPU takes one")

        @model_validator(mode="after")
        def _in_order(self) -> StarDist.Config:
            if self.pmin >= self.pmax:
                raise ValueError("pmin must be below pmax")
            if self.backend == "tensorflow" and self.precision != "fp32":
                raise ValueError("the tensorflow backend computes in fp32 only")
            return self

    def __init__(
        self,
        config: PluginConfig | None = None,
        *,
        weights: Mapping[str, Path] | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(config, weights=weights, device=device)
        files = model_files(self.config.model, self.weights)
        self.weights.update(files.by_name)
        self._design = None if files.config is None else Design.read(files.config)
        prob, nms = files.read_thresholds()
        self._thresholds = Thresholds(self.config.prob_thresh or prob, self.config.nms_thresh or nms)
        self._engine = self._load(files)
        self._scaling = self._prepare(self._engine.channels)
        self._limits: Limits | None = None

    @property
    def wants(self) -> Wants:
        """The configured stain and scale, and the network's reach as halo.

        Any size is taken: the plugin mirrors the picture up to whole cells itself, as stardist does, and leaves out what it
        finds in that margin; core's padding would let it suppress nuclei at the rim.
        """
        return Wants(stain=self.config.stain, mpp=self.config.mpp, halo=self._halo_px)

    @property
    def batch_size(self) -> int:
        """Tiles at once: as configured on a GPU; more than one does not pay on a CPU."""
        return 1 if self.device == "cpu" else int(self.config.batch_size)

    def calibrate(self, sample: RGB) -> Self:
        """Return a copy that stretches every tile between the percentiles of the sample, if scaling is by picture."""
        if self.config.scaling == "tile":
            return self
        fitted = copy.copy(self)
        fitted._limits = self._scaling.limits(sample)
        return fitted

    def segment(self, batch: RGB) -> LabelMap:
        """Segment uint8 (N, H, W, 3) into int32 (N, H, W); ids 1..n without gaps, the most probable first.

        Without `calibrate`, each picture is taken for a whole one. One without contrast is not put through the network.
        """
        labels = np.zeros(batch.shape[:3], np.int32)
        seen = [index for index, pixels in enumerate(batch) if not self._scaling.is_flat(pixels)]
        if not seen:
            return labels
        limits = [self._limits or self._scaling.limits(batch[index]) for index in seen]
        pictures = np.stack([self._scaling.apply(batch[i], one) for i, one in zip(seen, limits, strict=True)])
        for index, found in zip(seen, self._engine.labels(pictures, self._thresholds), strict=True):
            labels[index] = without_gaps(found)
        return labels

    @property
    def _halo_px(self) -> int:
        if self._design is None:
            return group_network.REACH_PX
        # A tile whose origin stays on the coarsest grid is pooled as the whole picture is.
        return up_to(self._design.reach_px, math.lcm(*self._design.multiple_of))

    def _load(self, files: ModelFiles) -> Any:
        if self.config.backend == "torch":
            from .torch_engine import TorchEngine

            return TorchEngine.load(
                files, self._design, device=self.device, precision=self.config.precision, batch_size=self.batch_size
            )
        if self._design is None:
            raise ConfigError(
                f'{files.weights.name!r} is a state dict of torch: run it with backend = "torch" instead of "tensorflow".'
            )
        from .tensorflow_engine import TensorFlowEngine

        return TensorFlowEngine.load(files, self._design, device=self.device)

    def _prepare(self, channels: int) -> Scaling:
        if channels not in (1, 3):
            raise WeightsCorrupt(
                f"The StarDist model is for pictures of {channels} channels; stainbridge gives it RGB, or grey for one channel."
            )
        config = self.config
        return Scaling(
            channels=1 if channels == 1 else 3,
            grey=config.grey,
            percentiles=(config.pmin, config.pmax),
            jointly=config.channels == "jointly",
            least_span=config.least_span,
        )
