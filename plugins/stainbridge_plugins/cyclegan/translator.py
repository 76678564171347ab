"""The CycleGAN translator. Source: Zhu et al. 2017, arXiv 1703.10593; github.com/junyanz/pytorch-CycleGAN-and-pix2pix."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from stainbridge import RGB, Learner, Translator, Wants
from stainbridge.torchkit.generators import GeneratorSettings, Runner, opened

from .learner import PRESETS, Training

if TYPE_CHECKING:
    import torch


class CycleGAN(Translator):
    """Translates by a generator with instance normalisation, tile by tile as it was trained.

    Every layer takes its mean and variance over the tile, so tiles drift in colour. With `statistics` "slide" these are gathered once
    over the picture when it is calibrated, and tiles cannot be seen.
    """

    name = "cyclegan"
    api = 1
    Config = GeneratorSettings
    Training = Training
    presets = PRESETS
    learns_from = "unpaired"
    expected_failures: ClassVar[Mapping[str, str]] = {
        "does_not_depend_on_the_window": "instance normalisation takes its statistics from the tile"
    }

    def __init__(self, config: GeneratorSettings | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self._runner = opened(self, _read)
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


def _read(path: Path) -> torch.nn.Module:
    from .checkpoint import read_generator

    return read_generator(path)[0]
