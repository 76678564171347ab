"""The calls of DeepLIIF as a classifier of nuclei."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stainbridge import RGB, LabelMap, PositivityClassifier, Segmenter, Wants
from stainbridge.errors import ConfigError
from stainbridge.records import NucleusValues

from . import rules_1_1_2, rules_current
from .cells import POSITIVE_FROM, brightest, shares, tally
from .engine import HALO_PX, open_engine
from .segmenter import DeepLIIF
from .settings import MARKER_VALUE, SHARE_VALUE, NetworkSettings


class DeepLIIFCalls(PositivityClassifier):
    """Calls a nucleus positive where at least half of its counted pixels are, in the segmentation of DeepLIIF.

    For nuclei of the segmenter `deepliif` with the same networks and settings it takes what that found in its own pass, and costs
    nothing; of such a nucleus the pixels inside its outline count, of others all. For others the networks run over the tiles of 512 px
    that hold them, padded whatever the segmenter's tiling: as much again as a segmentation.
    """

    name = "deepliif"
    api = 1

    class Config(NetworkSettings):
        """The networks; how the marker takes part; whether the segmenter's own pass is taken."""

        marker_thresh: int | Literal["picture"] | None = Field(
            None,
            description="current: a nucleus whose marker is above it (0..255) is positive whatever its pixels; "
            '"picture": at 90 % of the range of the picture; none: the marker takes no part',
        )
        reuse: bool = Field(
            True,
            description="take the calls from the pass in which the segmenter of the same networks found the nuclei; false: run the "
            "networks over the stitched nuclei",
        )

        @model_validator(mode="after")
        def _of_current(self) -> DeepLIIFCalls.Config:
            if self.marker_thresh is not None and self.version != "current":
                raise ValueError('marker_thresh belongs to version = "current"')
            if isinstance(self.marker_thresh, int) and not 0 <= self.marker_thresh <= 255:
                raise ValueError("marker_thresh must be a brightness in 0..255")
            return self

    def __init__(
        self, config: Config | None = None, *, weights: Mapping[str, Path] | None = None, device: str = "cpu"
    ) -> None:
        super().__init__(config, weights=weights, device=device)
        self._engine = open_engine(self.config, self.weights, device=device, plugin=f"classifier {self.name!r}")
        self.weights = self._engine.files.by_name
        if self.config.marker_thresh is not None and not self._engine.makes_marker:
            raise ConfigError(
                f"classifier {self.name!r}: marker_thresh needs the marker picture, which is not made as the share of G55 is 0.\n"
                "Give it a share (seg_weights), or leave marker_thresh out."
            )
        rules = rules_1_1_2 if self.config.version == "1.1.2" else rules_current
        self._coloured = rules.coloured

    @property
    def wants(self) -> Wants:
        """IHC at the networks' scale, with context."""
        return Wants(stain="ihc", mpp=self.config.mpp, halo=HALO_PX)

    @property
    def threshold(self) -> float:
        """One half of the counted pixels, as DeepLIIF decides."""
        return POSITIVE_FROM

    def calibrate(self, sample: RGB) -> Self:
        """Return a copy with the marker's threshold from uint8 (N, H, W, 3), where it is that of the picture."""
        if self.config.marker_thresh != "picture":
            return self
        marker = np.concatenate([self._engine.pictures(window)[..., 3].ravel() for window in sample])
        fitted = copy.copy(self)
        fitted.config = self.config.model_copy(update={"marker_thresh": rules_current.marker_threshold(marker)})
        return fitted

    def derives_from(self, segmenter: Segmenter) -> bool:
        """Return whether the segmenter has the same networks and settings; not where `reuse` is false."""
        if not (self.config.reuse and isinstance(segmenter, DeepLIIF) and segmenter.engine is self._engine):
            return False
        # Where the marker's threshold is not known yet, the whole picture has to be seen.
        limit = self.config.marker_thresh
        return limit is None or (limit != "picture" and segmenter.tells_marker)

    def derive(self, values: NucleusValues) -> NDArray[np.float64]:
        """Return the share of positive among counted pixels that the segmenter found, float64 (n,); 1 by the marker."""
        share, limit = values[SHARE_VALUE], self.config.marker_thresh
        return share if limit is None else _lit(share, values[MARKER_VALUE], limit)

    def classify(self, ihc: RGB, labels: LabelMap) -> NDArray[np.float64]:
        """Return the share of positive among counted pixels per label, float64 (n,); 0 where none counts, 1 by the marker.

        The networks run over the tiles that hold a label; over all where the marker's threshold is that of the picture and it was not
        calibrated.
        """
        n = int(labels.max(initial=0))
        if n == 0:
            return np.zeros(0)
        limit = self.config.marker_thresh
        picture = self._engine.pictures(ihc, where=None if limit == "picture" else labels > 0)
        positive, negative = self._coloured(ihc, picture[..., :3], seg_thresh=self.config.threshold)
        p = shares(tally(labels, positive, n), tally(labels, negative, n))
        if limit is None:
            return p
        if limit == "picture":
            limit = rules_current.marker_threshold(picture[..., 3])
        return _lit(p, brightest(labels, picture[..., 3], n), limit)


def _lit(p: NDArray[np.float64], marker: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Return 1 where the marker is above its threshold, and `p` elsewhere; float64 (n,) each."""
    return np.where(marker > limit, 1.0, p)
