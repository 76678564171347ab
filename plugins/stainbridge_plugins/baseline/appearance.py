"""What belongs to the whole picture: its glass, its stains, and how dark its ground and its nuclei are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB
from stainbridge.color import DAB, HAEMATOXYLIN, optical_density, unmix

from .glass import glass_colour

# Mean optical density from which a pixel is tissue.
_TISSUE_OD = 0.05
# Pink pixels are under 4 % of the tissue of an IHC and over 20 % of that of an H&E, real or virtual.
_PINK_SHARE = (0.05, 0.2)
# Without a pixel of a dye its usual density stands in.
_USUAL_OD = {"haematoxylin": 0.4, "dab": 0.8}
# How much a brown pixel of the picture's own typical DAB counts beside its red density.
_DAB_WEIGHT = 0.6


@dataclass(frozen=True)
class Appearance:
    """Values of one picture.

    Parameters
    ----------
    glass : colour of glass, red, green, blue, 0..255
    eosin : 0 for IHC, where the ground is clear, 1 for H&E, where eosin stains it
    haematoxylin_od : red optical density of dark blue nuclei
    dab_od : DAB density of dark brown nuclei
    """

    glass: tuple[float, float, float]
    eosin: float
    haematoxylin_od: float
    dab_od: float


def appearance(sample: RGB) -> Appearance:
    """Measure the appearance of one picture from uint8 (N, H, W, 3)."""
    pixels = sample.reshape(-1, 3)
    glass = glass_colour(pixels)
    density = optical_density(pixels, glass)
    red, green, blue = np.moveaxis(density, -1, 0)
    tissue = density.mean(axis=-1) > _TISSUE_OD
    pink = tissue & (green > 1.5 * red) & (green > 1.2 * blue)
    share = pink.sum() / max(tissue.sum(), 1)
    amounts = unmix(pixels, (HAEMATOXYLIN, DAB), background=glass)
    # Haematoxylin absorbs red more than blue; DAB and eosin do the opposite. Beyond 1.2 a pixel is black.
    bluish = red[(red > blue) & (red > 0.08) & (red < 1.2)]
    brownish = amounts[(amounts[:, 1] > 0.1) & (amounts[:, 0] < 2 * amounts[:, 1]), 1]
    return Appearance(
        glass=glass,
        eosin=float(np.clip((share - _PINK_SHARE[0]) / (_PINK_SHARE[1] - _PINK_SHARE[0]), 0.0, 1.0)),
        haematoxylin_od=_percentile(bluish, 95, least=0.1, usual=_USUAL_OD["haematoxylin"]),
        dab_od=_percentile(brownish, 75, least=0.25, usual=_USUAL_OD["dab"]),
    )


def nuclear_density(rgb: RGB, picture: Appearance, knee: float) -> NDArray[np.float32]:
    """Return the share of light that nuclear stain absorbs, float32 (...) in 0..1, for uint8 (..., 3).

    Red passes eosin and is absorbed by haematoxylin and by DAB; without eosin, brown counts besides. `knee` is the density, in
    units of a dark nucleus, at which 63 % is absorbed: it brings pale and dark nuclei closer together.
    """
    amount = optical_density(rgb, picture.glass)[..., 0] / np.float32(picture.haematoxylin_od * knee)
    if picture.eosin < 1:
        dab = unmix(rgb, (HAEMATOXYLIN, DAB), background=picture.glass)[..., 1]
        amount = amount + np.maximum(dab, 0) * np.float32((1 - picture.eosin) * _DAB_WEIGHT / picture.dab_od)
    return 1 - np.exp(-amount)


def _percentile(values: NDArray[np.float32], percentile: float, *, least: float, usual: float) -> float:
    # A handful of pixels is noise, not a dye.
    if len(values) < 50:
        return usual
    return max(float(np.percentile(values, percentile)), least)
