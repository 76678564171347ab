"""The U-GAT-IT translator. Source: Kim et al. 2020, arXiv 1907.10830; github.com/znxlwm/UGATIT-pytorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from stainbridge import RGB, Learner, Translator, Wants
from stainbridge.torchkit.generators import GeneratorSettings, Runner, opened

from .learner import PRESETS, Training

if TYPE_CHECKING:
    import torch


class UGATIT(Translator):
    """Translates by a generator with attention, tile by tile as it was trained.

    Normalisation, style and attention are taken from the tile, so tiles drift in colour. With `statistics` "slide" they are gathered
    once over the picture when it is calibrated, and tiles cannot be seen. A generator that is not light takes tiles of its training's
    size only, but with "slide".
    """

    name = "ugatit"
    api = 1
    Training = Training
    presets = PRESETS
    learns_from = "unpaired"
    expected_failures: ClassVar[Mapping[str, str]] = {
        "does_not_depend_on_the_window": "normalisation and style take their statistics from the tile"
    }

    class Config(GeneratorSettings):
        """Scale, tiles and arithmetic of the generator, and which one of a file that has two."""

        direction: Literal["A2B", "B2A"] = Field(
            "A2B", description="of a file of the original that has both: A2B where IHC was its domain A"
        )

    def __init__(self, config: Config | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self._runner = opened(self, self._read)
        self._fitted: Runner | None = None
        self._wants = self._runner.wants
        if self.config.statistics == "slide":
            self.expected_failures = {}

    @property
    def wants(self) -> Wants:
        """IHC at the scale and in tiles of the size that the generator was trained at; of any size with "slide"."""
        return self._wants

    @property
    def batch_size(self) -> int:
        """Tiles at once: those of the configuration on a GPU, 1 on a CPU."""
        return self._runner.batch_size

    def calibrate(self, sample: RGB) -> Self:
        """Return a copy whose config tells the precision that is used; with "slide", normalising by the picture's statistics."""
        fitted = copy.copy(self)
        fitted.config = self.config.model_copy(update={"precision": self._runner.precision})
        if self.config.statistics == "slide":
            fitted._fitted = self._runner.fixed(sample)
        return fitted

    def translate(self, batch: RGB) -> RGB:
        """Translate uint8 (N, H, W, 3) IHC to uint8 (N, H, W, 3) virtual H&E; uncalibrated, each by its own statistics."""
        return (self._fitted or self._runner)(batch)

    @classmethod
    def learner(cls, settings: Any, *, device: str, seed: int, mpp: float, patch_px: int) -> Learner:
        """Return a learner with fresh networks; see `stainbridge.Trainable`."""
        from .learner import learner

        return learner(settings, device=device, seed=seed, mpp=mpp, patch_px=patch_px)

    def _read(self, path: Path) -> torch.nn.Module:
        from .checkpoint import read_generator

        return read_generator(path, direction=self.config.direction)[0]
