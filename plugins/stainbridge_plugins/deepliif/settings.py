"""What the networks are and how they are run; the segmenter and the classifier share it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from stainbridge import PluginConfig
from stainbridge.torchkit import AskedPrecision

Version: TypeAlias = Literal["1.1.2", "current"]
"""Which program is followed: the release of April 2022, which the paper compares with, or that of 2025 (1.2.6)."""

SegWeights: TypeAlias = tuple[float, float, float, float, float]
"""Share of each segmentation in the sum: from the IHC (G51), haematoxylin (G52), DAPI (G53), Lap2 (G54) and marker (G55)."""

# Release 1.1.2 pairs the list of its training, in the order of G51..G55, with networks in the order G52, G53, G54, G55, G51.
SEG_WEIGHTS: dict[Version, SegWeights] = {"1.1.2": (0.25, 0.25, 0.15, 0.25, 0.10), "current": (0.2, 0.2, 0.2, 0.2, 0.2)}
SEG_THRESH: dict[Version, int] = {"1.1.2": 80, "current": 120}


SHARE_VALUE, MARKER_VALUE = "deepliif_positive_share", "deepliif_marker"
"""What the segmenter tells of a nucleus: share of its counted pixels that are positive, 0..1; where one is made, its brightest marker."""


class NetworkSettings(PluginConfig):
    """The folder with the networks, and how their segmentation is made."""

    path: Path | None = Field(
        None,
        description="folder with latest_net_G1.pth .. latest_net_G55.pth and train_opt.txt, or with G1.pt .. G55.pt",
    )
    version: Version = Field(
        "1.1.2", description='which program is followed: the release that the paper uses, or "current" (1.2.6)'
    )
    seg_weights: SegWeights | None = Field(
        None,
        description="share of the segmentations from IHC, haematoxylin, DAPI, Lap2 and marker; none takes the version's: "
        "0.25, 0.25, 0.15, 0.25, 0.10 for 1.1.2, and for current those of train_opt.txt, or 0.2 each",
    )
    batch_norm: Literal["batch", "running"] = Field(
        "batch", description="statistics of each tile by itself, as all releases do, or those of the training"
    )
    dropout: bool = Field(
        False, description="drop half of the features at random, as networks serialised by 1.1.2 do; off from 1.1.6 on"
    )
    seed: int = Field(0, ge=0, description="of the dropout; a tile and a seed give one result")
    skip_empty: bool | None = Field(
        None,
        description="tiles of even colour have no nuclei and are not shown to the networks; none: not in 1.1.2, in current",
    )
    seg_thresh: int | None = Field(
        None,
        ge=0,
        le=509,
        description="1.1.2: a pixel counts where red or blue, slightly brightened, is above it (80); current: where their sum is (120)",
    )
    mpp: float = Field(0.25, gt=0, le=10, description="micrometres per pixel that the networks were trained at")
    batch_size: int = Field(4, ge=1, le=64, description="tiles at once on a GPU; a CPU takes one, and so does dropout")
    precision: AskedPrecision = Field(
        "fp32", description="arithmetic: fp32, bf16, fp16 (on CUDA only), or auto for the fastest"
    )

    @field_validator("seg_weights")
    @classmethod
    def _shares(cls, shares: SegWeights | None) -> SegWeights | None:
        # Said this way round, what is not a number is refused too.
        if shares is not None and not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):
            raise ValueError("must be five shares, none negative, with the sum 1")
        return shares

    @model_validator(mode="after")
    def _in_range(self) -> NetworkSettings:
        if self.version == "1.1.2" and self.seg_thresh is not None and self.seg_thresh > 254:
            raise ValueError("seg_thresh of version 1.1.2 is at most 254")
        return self

    @property
    def skips_empty(self) -> bool:
        """Whether tiles of even colour are skipped."""
        return self.version == "current" if self.skip_empty is None else self.skip_empty

    @property
    def threshold(self) -> int:
        """The brightness from which a pixel counts."""
        return SEG_THRESH[self.version] if self.seg_thresh is None else self.seg_thresh

    def shares(self, of_the_model: SegWeights | None) -> SegWeights:
        """Return the share of each segmentation; `of_the_model` are those in its options, which only "current" heeds."""
        if self.seg_weights is not None:
            return self.seg_weights
        if self.version == "current" and of_the_model is not None:
            return of_the_model
        return SEG_WEIGHTS[self.version]
