"""The calls of DeepLIIF as a classifier of nuclei."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stainbridge import RGB, LabelMap, PositivityClassifier, Wants
from stainbridge.errors import ConfigError

from . import rules_1_1_2, rules_current
from .cells import POSITIVE_FROM, Mask, brightest, shares, tally
from .engine import HALO_PX, open_engine
from .recognition import Traits
from .settings import NetworkSettings

_ALIKE_GREY_LEVELS = 30.0
"""Root of the mean squared difference of two mean colours up to which a piece of a nucleus counts as one of a known nucleus."""


class DeepLIIFCalls(PositivityClassifier):
    """Calls a nucleus positive where at least half of its counted pixels are, in the segmentation of DeepLIIF.

    Nuclei that the segmenter `deepliif` found in this process, with the same networks and settings, are known by their pixels and cost
    about 0.2 milliseconds each. For others the networks run over the tiles of 512 px that hold them: as much again as a segmentation.
    """

    name = "deepliif"
    api = 1

    class Config(NetworkSettings):
        """The networks; how the marker takes part; whether nuclei are known again."""

        marker_thresh: int | Literal["picture"] | None = Field(
            None,
            description="current: a nucleus whose marker is above it (0..255) is positive whatever its pixels; "
            '"picture": at 90 % of the range of the picture; none: the marker takes no part',
        )
        reuse: bool = Field(
            True,
            description="take the calls of nuclei that the segmenter found in this process; false: run the networks always, "
            "so that nothing depends on what was done before",
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

    def classify(self, ihc: RGB, labels: LabelMap) -> NDArray[np.float64]:
        """Return the share of positive among counted pixels per label, float64 (n,); 0 where none counts, 1 by the marker."""
        n = int(labels.max(initial=0))
        if n == 0:
            return np.zeros(0)
        traits = self._engine.memory.recall(ihc, labels) if self.config.reuse else _unknown(n)
        if not traits.known.all():
            traits = self._completed(ihc, labels, traits)
        limit = self.config.marker_thresh
        if limit == "picture":
            limit = rules_current.marker_threshold(self._engine.pictures(ihc)[..., 3])
        return traits.p_positive if limit is None else np.where(traits.marker > limit, 1.0, traits.p_positive)

    def _completed(self, ihc: RGB, labels: LabelMap, traits: Traits) -> Traits:
        """Return traits of all nuclei: those that are not known by the networks, or as pieces, or by colour, where the window cuts them."""
        missing = ~traits.known
        if self.config.reuse:
            # Windows hold the nuclei in question whole, and beside them pieces of others, which are not worth a pass of the networks.
            cut = missing & _at_rim(labels, len(missing))
            for parts in (self._engine.memory.pieces(ihc, labels), _by_colour(ihc, labels, traits)):
                taken = cut & parts.known
                traits = Traits(*(np.where(taken, part, whole) for part, whole in zip(parts, traits, strict=True)))
                cut, missing = cut & ~taken, missing & ~taken
        if not missing.any():
            return traits
        n = len(missing)
        where = np.concatenate([[False], missing])[labels]
        picture = self._engine.pictures(ihc, where=where)
        positive, negative = self._coloured(ihc, picture[..., :3], seg_thresh=self.config.threshold)
        p = shares(tally(labels, positive & where, n), tally(labels, negative & where, n))
        marker = brightest(np.where(where, labels, 0), picture[..., 3], n)
        return Traits(np.where(missing, p, traits.p_positive), np.where(missing, marker, traits.marker))


def _unknown(n: int) -> Traits:
    return Traits(np.full(n, np.nan), np.full(n, np.nan))


def _at_rim(labels: LabelMap, n: int) -> Mask:
    """Return which labels 1..n touch the border of the window."""
    touches = np.zeros(n + 1, bool)
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touches[border] = True
    return touches[1:]


def _by_colour(ihc: RGB, labels: LabelMap, traits: Traits) -> Traits:
    """Return for each nucleus the traits of the known one that is nearest in mean colour; not known where none looks alike."""
    n = len(traits.p_positive)
    known = np.flatnonzero(traits.known)
    if not known.size:
        return _unknown(n)
    inside = labels > 0
    colour = np.stack([np.bincount(labels[inside], ihc[..., c][inside], n + 1)[1:] for c in range(3)], axis=1)
    colour /= np.maximum(np.bincount(labels[inside], minlength=n + 1)[1:], 1)[:, None]
    distance = ((colour[:, None] - colour[known][None]) ** 2).mean(-1)
    nearest = known[distance.argmin(axis=1)]
    alike = distance.min(axis=1) <= _ALIKE_GREY_LEVELS**2
    return Traits(*(np.where(alike, of[nearest], np.nan) for of in traits))
