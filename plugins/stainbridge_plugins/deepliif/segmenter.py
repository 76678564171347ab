"""DeepLIIF as a segmenter of IHC. Source: Ghahremani et al., Nature Machine Intelligence 4:401-412 (2022)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from stainbridge import RGB, Described, LabelMap, Segmenter, Wants
from stainbridge.records import NucleusValues

from . import rules_1_1_2, rules_current, tiling
from .cells import Cells, Reading
from .engine import HALO_PX, open_engine
from .ensemble import Pictures
from .networks import TILE_PX
from .settings import MARKER_VALUE, SHARE_VALUE, NetworkSettings


class DeepLIIF(Segmenter):
    """Finds nuclei in IHC itself: four virtual stains, five segmentations, their weighted sum, and a release's post-processing.

    What it finds it also calls: the share of positive pixels of each nucleus, and its brightest marker where one is made, ride with the
    labels. The classifier of the same name takes its calls from them, without another look, where both have the same networks and
    settings.
    """

    name = "deepliif"
    api = 1

    class Config(NetworkSettings):
        """The networks, and the post-processing of a release with its thresholds."""

        reading: Reading = Field(
            "interior+outline",
            description="what of a cell is its nucleus: interior as it is counted; interior+outline as its outline is drawn (current) "
            "or segmented (1.1.2); refined: the fragments that the drawn lines of 1.1.2 leave",
        )
        size_px: int | None = Field(
            None,
            ge=0,
            description="smallest cell; none takes 50 px in 1.1.2, and in current derives it from the picture's sizes",
        )
        noise_px: int | None = Field(
            None, ge=0, description="1.1.2: smallest hole, 20 px; current: largest component that is but noise, 4 px"
        )
        size_upper_px: int | None = Field(
            None, ge=1, description="current: cells of this many pixels and more are none"
        )
        large_noise_px: int | None = Field(
            None, ge=1, description="current: such components do not even count where the smallest cell is derived"
        )
        tiling: Literal["padded", "original"] = Field(
            "padded",
            description="padded: tiles of 512 px with 64 px of context, the same wherever a window begins; original: as the version's "
            "program tiles a picture, for comparison with it. That of 1.1.2 resizes a picture to whole tiles, and sees one larger than "
            "a tile at two thirds of its scale; the current one takes tiles of 512 px with 32 px of context and resizes nothing. Each "
            "window is tiled by itself, and a picture of over 1024 px comes in several: set tile_px to its longer side in pixels of mpp",
        )

        @model_validator(mode="after")
        def _belong_together(self) -> DeepLIIF.Config:
            if self.version == "current":
                if self.reading == "refined":
                    raise ValueError('reading = "refined" belongs to version = "1.1.2"')
            elif self.size_upper_px is not None or self.large_noise_px is not None:
                raise ValueError('size_upper_px and large_noise_px belong to version = "current"')
            return self

    def __init__(
        self, config: Config | None = None, *, weights: Mapping[str, Path] | None = None, device: str = "cpu"
    ) -> None:
        super().__init__(config, weights=weights, device=device)
        self.engine = open_engine(self.config, self.weights, device=device, plugin=f"segmenter {self.name!r}")
        self.weights = self.engine.files.by_name
        self._rules = _rules(self.config)

    @property
    def wants(self) -> Wants:
        """IHC at the networks' scale; tiles of 512 px with context, or any size where tiling is the original's.

        A picture larger than what is given at once is then tiled window by window, which its program does not do: see `tiling`.
        """
        tile = TILE_PX if self.config.tiling == "padded" else None
        return Wants(stain="ihc", mpp=self.config.mpp, tile=tile, halo=HALO_PX)

    @property
    def batch_size(self) -> int:
        """Tiles at once: as configured on a GPU; more than one does not pay on a CPU."""
        return 1 if self.device == "cpu" else int(self.config.batch_size)

    @property
    def tells_marker(self) -> bool:
        """Whether nuclei are described with their marker: not where its picture is not made, or tiles are resized as 1.1.2 does."""
        resized = self.config.tiling == "original" and self.config.version == "1.1.2"
        return self.engine.makes_marker and not resized

    def calibrate(self, sample: RGB) -> Self:
        """Return a copy that takes the size of the smallest cell from all of uint8 (N, H, W, 3); only "current" derives it.

        The networks run over the sample. Tiles of a picture of up to 2048 x 2048 px are remembered, so that there it costs nothing.
        """
        if isinstance(self._rules, rules_1_1_2.Rules) or self._rules.size_px is not None:
            return self
        sizes = [self._rules.components(seg)[1] for seg in self.segmentations(sample)]
        fitted = copy.copy(self)
        size_px = rules_current.size_threshold(np.concatenate(sizes), mpp=self.config.mpp)
        fitted.config = self.config.model_copy(update={"size_px": size_px})
        fitted._rules = _rules(fitted.config)
        return fitted

    def segment(self, batch: RGB) -> LabelMap:
        """Segment uint8 (N, H, W, 3) IHC of any size into int32 (N, H, W), ids 0..n without gaps per image."""
        return np.stack([cells.labels for cells in self.cells(batch)])

    def describe(self, batch: RGB) -> Described:
        """Segment uint8 (N, H, W, 3) IHC, and tell of each nucleus its share of positive pixels, 0..1.

        Where `tells_marker`, also its brightest marker, 0..255.
        """
        found = list(self._found_in(batch))
        return Described(np.stack([cells.labels for cells, _ in found]), [self._told(*one) for one in found])

    def cells(self, batch: RGB) -> list[Cells]:
        """Return labels and calls of uint8 (N, H, W, 3) IHC, in one pass of the networks."""
        return [cells for cells, _ in self._found_in(batch)]

    def segmentations(self, batch: RGB) -> RGB:
        """Return uint8 (N, H, W, 3), what the networks make of uint8 (N, H, W, 3) IHC: red, outline and blue, before any threshold."""
        return np.stack([picture[..., :3] for picture in self._pictures(batch)])

    def _pictures(self, batch: RGB) -> Iterable[Pictures]:
        """Yield uint8 (H, W, 4) per picture, or (H, W, 3) where tiles are resized: of the segmentation alone."""
        run = self.engine.tiles
        if self.config.tiling == "original" and self.config.version == "current":
            return (tiling.overlapping_tiles(ihc, run) for ihc in batch)
        if self.config.tiling == "original":
            return (tiling.resized_tiles(ihc, lambda tiles: run(tiles)[..., :3]) for ihc in batch)
        if batch.shape[1:3] == (TILE_PX, TILE_PX):
            return run(batch)
        return (self.engine.pictures(ihc) for ihc in batch)

    def _found_in(self, batch: RGB) -> Iterator[tuple[Cells, Pictures]]:
        """Yield the cells of each picture, and what they were found in."""
        for ihc, picture in zip(batch, self._pictures(batch), strict=True):
            yield self._rules.cells(ihc, picture[..., :3], reading=self.config.reading), picture

    def _told(self, cells: Cells, picture: Pictures) -> NucleusValues:
        share = {SHARE_VALUE: cells.p_positive}
        return share | {MARKER_VALUE: cells.brightest(picture[..., 3])} if self.tells_marker else share


def _rules(config: DeepLIIF.Config) -> rules_1_1_2.Rules | rules_current.Rules:
    """Return the post-processing with the thresholds that are set, and the release's own for the others."""
    chosen = {"seg_thresh": config.seg_thresh, "size_px": config.size_px, "noise_px": config.noise_px}
    named = {name: value for name, value in chosen.items() if value is not None}
    if config.version == "1.1.2":
        return rules_1_1_2.Rules(**named)
    limits = {"size_upper_px": config.size_upper_px, "large_noise_px": config.large_noise_px}
    return rules_current.Rules(**named, **limits, mpp=config.mpp)
