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
# Share of the tissue that is brown: nuclei never cover most of it, a marker of cytoplasm or membranes does.
_DIFFUSE_SHARE = (0.6, 0.75)
# Without a pixel of a dye its usual density stands in.
_USUAL_OD = {"haematoxylin": 0.4, "dab": 0.8}
# How much a brown pixel of the picture's own typical DAB counts beside its red density.
_DAB_WEIGHT = 0.6
_RED_OF_HAEMATOXYLIN = np.float32(HAEMATOXYLIN[0] / np.linalg.norm(HAEMATOXYLIN))


@dataclass(frozen=True)
class Appearance:
    """Values of one picture.

    Parameters
    ----------
    glass : colour of glass, red, green, blue, 0..255
    eosin : 0 for IHC, where the ground is clear, 1 for H&E, where eosin stains it
    haematoxylin_od : red optical density of dark blue nuclei
    dab_od : DAB density of dark brown nuclei
    nuclear_dab : 1 where DAB stains nuclei, 0 where it covers most of the tissue and only haematoxylin tells a nucleus
    """

    glass: tuple[float, float, float]
    eosin: float
    haematoxylin_od: float
    dab_od: float
    nuclear_dab: float


def appearance(sample: RGB) -> Appearance:
    """Measure the appearance of one picture from uint8 (N, H, W, 3)."""
    pixels = sample.reshape(-1, 3)
    glass = glass_colour(pixels)
    density = optical_density(pixels, glass)
    red, green, blue = np.moveaxis(density, -1, 0)
    tissue = density.mean(axis=-1) > _TISSUE_OD
    pink = tissue & (green > 1.5 * red) & (green > 1.2 * blue)
    amounts = unmix(pixels, (HAEMATOXYLIN, DAB), background=glass)
    # Haematoxylin absorbs red more than blue; DAB and eosin do the opposite. Beyond 1.2 a pixel is black.
    bluish = red[(red > blue) & (red > 0.08) & (red < 1.2)]
    brown = (amounts[:, 1] > 0.1) & (amounts[:, 0] < 2 * amounts[:, 1])
    eosin = _ramp(pink, tissue, _PINK_SHARE)
    return Appearance(
        glass=glass,
        eosin=eosin,
        haematoxylin_od=_percentile(bluish, 95, least=0.1, usual=_USUAL_OD["haematoxylin"]),
        dab_od=_percentile(amounts[brown, 1], 75, least=0.25, usual=_USUAL_OD["dab"]),
        # Eosin looks somewhat brown; where there is eosin nothing is known about DAB.
        nuclear_dab=max(1 - _ramp(tissue & brown, tissue, _DIFFUSE_SHARE), eosin),
    )


def nuclear_density(rgb: RGB, picture: Appearance, knee: float) -> NDArray[np.float32]:
    """Return the share of light that nuclear stain absorbs, float32 (...) in 0..1, for uint8 (..., 3).

    Red passes eosin and is absorbed by haematoxylin and by DAB; without eosin, brown counts besides. `knee` is the density, in
    units of a dark nucleus, at which 63 % is absorbed: it brings pale and dark nuclei closer together.
    """
    red = optical_density(rgb, picture.glass)[..., 0]
    if picture.eosin < 1:
        blue, brown = np.moveaxis(np.maximum(unmix(rgb, (HAEMATOXYLIN, DAB), background=picture.glass), 0), -1, 0)
        red = _blend(blue * _RED_OF_HAEMATOXYLIN, red, picture.nuclear_dab)
        weight = (1 - picture.eosin) * picture.nuclear_dab * _DAB_WEIGHT * picture.haematoxylin_od * knee
        red = red + brown * np.float32(weight / picture.dab_od)
    return 1 - np.exp(-red / np.float32(picture.haematoxylin_od * knee))


def _ramp(part: NDArray[np.bool_], whole: NDArray[np.bool_], limits: tuple[float, float]) -> float:
    """Return 0 where `part` is up to the lower share of `whole`, 1 from the upper one on."""
    share = part.sum() / max(int(whole.sum()), 1)
    return float(np.clip((share - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0))


def _blend(zero: NDArray[np.float32], one: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    return zero * np.float32(1 - weight) + one * np.float32(weight)


def _percentile(values: NDArray[np.float32], percentile: float, *, least: float, usual: float) -> float:
    # A handful of pixels is noise, not a dye.
    if len(values) < 50:
        return usual
    return max(float(np.percentile(values, percentile)), least)
