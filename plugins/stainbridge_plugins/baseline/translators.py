"""Translators that need no training: the identity, and colour deconvolution with re-staining."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stainbridge import RGB, PluginConfig, Translator, Wants
from stainbridge.color import DAB, EOSIN, HAEMATOXYLIN, mix, optical_density, unmix

from .glass import glass_colour

# Above this optical density of the red channel a pixel is too dark to tell which dye made it so.
_OPAQUE_OD = 1.0
# A pixel with less of a dye than this says nothing about it.
_DYED_OD = 0.1
# A dye on fewer tissue pixels than this has no percentile worth trusting.
_LEAST_PIXELS = 50


class Identity(Translator):
    """Returns the IHC as it is: how a run without translation is written."""

    name = "identity"
    api = 1

    @property
    def wants(self) -> Wants:
        """IHC on its own grid."""
        return Wants(stain="ihc")

    def translate(self, batch: RGB) -> RGB:
        """Return a copy of uint8 (N, H, W, 3)."""
        return batch.copy()


class Deconvolution(Translator):
    """Unmixes IHC into haematoxylin and DAB, and stains nuclei and cytoplasm as H&E.

    Of a nuclear marker (Ki-67, ER, p53) both dyes are nuclei: each is divided by its own high percentile before they are joined, so
    that a pale blue nucleus beside a dark brown one stays. Of a marker of cytoplasm or membrane (cytokeratin, CD3, HER2) only
    haematoxylin is, and DAB becomes eosin. Works pixel by pixel on the picture's own grid. Without `calibrate` the glass and the
    scales are the configured ones.
    """

    name = "deconvolution"
    api = 1

    class Config(PluginConfig):
        """What glass and a full nucleus look like in the IHC, and how dark the virtual stains are; densities are optical."""

        dab: Literal["nuclear", "cytoplasmic"] = Field("nuclear", description="where the marker is that DAB shows")
        glass: tuple[float, float, float] = Field(
            (245.0, 245.0, 245.0), description="colour of glass without calibration, red, green, blue, 0..255"
        )
        haematoxylin_od: float = Field(
            0.4, gt=0, le=3, description="haematoxylin of a full nucleus without calibration"
        )
        dab_od: float = Field(0.8, gt=0, le=3, description="DAB of a full nucleus without calibration")
        haematoxylin_percentile: float = Field(95.0, ge=50, le=100, description="of blue pixels: a full nucleus")
        dab_percentile: float = Field(75.0, ge=50, le=100, description="of brown pixels: a full nucleus")
        least_od: float = Field(0.25, gt=0, le=3, description="smallest calibrated scale: a faint dye is not blown up")
        background: float = Field(
            0.0, ge=0, lt=1, description="share of a full nucleus that counts as unspecific stain"
        )
        nucleus_od: float = Field(0.6, gt=0, le=3, description="virtual haematoxylin of a full nucleus")
        eosin_od: float = Field(0.25, ge=0, le=3, description="virtual eosin of dense tissue")

    @property
    def wants(self) -> Wants:
        """IHC on its own grid."""
        return Wants(stain="ihc")

    def calibrate(self, sample: RGB) -> Self:
        """Return a copy whose glass and scales are those of one picture, uint8 (N, H, W, 3)."""
        pixels = sample.reshape(-1, 3)
        glass = glass_colour(pixels)
        density = optical_density(pixels, glass)
        haematoxylin, dab = np.moveaxis(unmix(pixels, (HAEMATOXYLIN, DAB), background=glass), -1, 0)
        blue = (haematoxylin > _DYED_OD) & (dab < haematoxylin / 2) & (density[:, 0] < _OPAQUE_OD)
        brown = (dab > _DYED_OD) & (haematoxylin < dab * 2)
        fitted = self.config.model_copy(
            update={
                "glass": glass,
                "haematoxylin_od": self._scale(haematoxylin[blue], "haematoxylin"),
                "dab_od": self._scale(dab[brown], "dab"),
            }
        )
        return type(self)(fitted, weights=self.weights, device=self.device)

    def translate(self, batch: RGB) -> RGB:
        """Re-stain uint8 (N, H, W, 3) IHC as uint8 (N, H, W, 3) virtual H&E."""
        config = self.config
        amounts = unmix(batch, (HAEMATOXYLIN, DAB), background=config.glass)
        relative = np.maximum(amounts, 0) / np.array((config.haematoxylin_od, config.dab_od), np.float32)
        in_nuclei = relative.sum(axis=-1) if config.dab == "nuclear" else relative[..., 0]
        nuclear = _saturating(in_nuclei - config.background, 1.0)
        tissue = _saturating(optical_density(batch, config.glass).mean(axis=-1), 0.15)
        if config.dab == "cytoplasmic":
            tissue = (tissue + _saturating(relative[..., 1], 1.0)) / 2
        # Haematoxylin displaces eosin: a nucleus in H&E is blue, not magenta.
        eosin = tissue * (1.0 - nuclear / 2)
        stained = np.stack([nuclear * config.nucleus_od, eosin * config.eosin_od], axis=-1)
        return mix(stained, (HAEMATOXYLIN, EOSIN), background=245.0)

    def _scale(self, amounts: NDArray[np.float32], dye: str) -> float:
        if len(amounts) < _LEAST_PIXELS:
            return float(getattr(self.config, f"{dye}_od"))
        percentile = getattr(self.config, f"{dye}_percentile")
        return max(float(np.percentile(amounts, percentile)), self.config.least_od)


def _saturating(amount: NDArray[np.float32], full: float) -> NDArray[np.float32]:
    """Return the share of light that `amount` absorbs, 1 - 10**(-amount / full): 0 for none, 0.9 at `full`, 1 at most."""
    return 1.0 - np.exp(np.float32(-np.log(10) / full) * np.maximum(amount, 0))
