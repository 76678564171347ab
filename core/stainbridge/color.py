"""Colour arithmetic of stained tissue: optical density, stain unmixing and mixing, hue-saturation-intensity.

Every function works pixel by pixel, so that a tile gives what the whole picture gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError
from .records import RGB


def _stain(*density: float) -> NDArray[np.float64]:
    vector = np.array(density)
    vector.setflags(write=False)
    return vector


# Red, green and blue density of each dye: Ruifrok and Johnston, Anal Quant Cytol Histol 23:291 (2001); HistomicsTK, QuPath
# and scikit-image use the same three.
HAEMATOXYLIN = _stain(0.65, 0.70, 0.29)
EOSIN = _stain(0.07, 0.99, 0.11)
DAB = _stain(0.27, 0.57, 0.78)


def optical_density(rgb: NDArray[Any], background: ArrayLike = 255.0) -> NDArray[np.float32]:
    """Return the optical density of each channel, max(0, -log10(max(v, 1) / background)).

    Parameters
    ----------
    rgb : (..., 3), 0..255
    background : value of a pixel with no tissue, one number or one per channel

    Returns
    -------
    float32 (..., 3), 0 to log10(background). Source: QuPath's `ColorDeconvolutionHelper`.
    """
    glass = np.broadcast_to(np.asarray(background, np.float32), 3)
    if rgb.dtype != np.uint8:
        return _density(rgb, glass)
    table = _density(np.arange(256)[:, np.newaxis], glass)
    return np.stack([table[rgb[..., channel], channel] for channel in range(3)], axis=-1)


def unmix(rgb: NDArray[Any], stains: ArrayLike, *, background: ArrayLike = 255.0) -> NDArray[np.float32]:
    """Return how much of each stain every pixel holds.

    Parameters
    ----------
    rgb : (..., 3), 0..255
    stains : (S, 3), one density vector per stain, S of 1 to 3, linearly independent; scaled to length 1 here

    Returns
    -------
    float32 (..., S), optical density along each stain, by least squares (exact for three stains); negative where the colour
    lies outside the stains. Source: Ruifrok and Johnston (2001).

    Raises
    ------
    ConfigError
        If the stains are not 1 to 3 independent vectors.
    """
    inverse = np.linalg.pinv(_unit_rows(stains)).astype(np.float32)
    density = optical_density(rgb, background)
    # A matrix product over blocks may round differently with the number of pixels; sums of products do not.
    red, green, blue = np.moveaxis(density, -1, 0)
    return np.stack([red * r + green * g + blue * b for r, g, b in inverse.T], axis=-1)


def mix(concentrations: NDArray[Any], stains: ArrayLike, *, background: ArrayLike = 255.0) -> RGB:
    """Return the colour of stain concentrations, the inverse of `unmix`.

    Parameters
    ----------
    concentrations : (..., S), optical density along each stain
    stains : (S, 3), one density vector per stain; scaled to length 1 here

    Returns
    -------
    uint8 (..., 3)
    """
    vectors = _unit_rows(stains).astype(np.float32)
    amounts = np.moveaxis(np.asarray(concentrations, np.float32), -1, 0)
    channels = [sum(amount * part for amount, part in zip(amounts, column, strict=True)) for column in vectors.T]
    light = np.asarray(background, np.float32) * np.exp(np.float32(-np.log(10)) * np.stack(channels, axis=-1))
    rounded: RGB = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    return rounded


def rgb_to_hsi(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """Return hue, saturation and intensity.

    Parameters
    ----------
    rgb : (..., 3), 0..255; a fourth channel is ignored

    Returns
    -------
    float64 (..., 3): hue in [0, 1), 0 for grey; saturation in [0, 1], 0 for black; intensity in [0, 1].
    Source: HistomicsTK 1.4.0 `rgb_to_hsi`.
    """
    red, green, blue = np.moveaxis(np.asarray(rgb)[..., :3] / 255.0, -1, 0)
    intensity = (red + green + blue) / 3.0
    darkest = np.minimum(np.minimum(red, green), blue)
    saturation = np.where(intensity > 0, 1.0 - darkest / np.maximum(intensity, 1e-10), 0.0)
    hue = np.arctan2(np.sqrt(3.0) * (green - blue), 2.0 * red - green - blue) / (2.0 * np.pi) % 1.0
    return np.stack([hue, saturation, intensity], axis=-1)


def _density(values: NDArray[Any], glass: NDArray[np.float32]) -> NDArray[np.float32]:
    light = np.maximum(values.astype(np.float32), np.float32(1.0)) / glass
    # `0.0 -` instead of a minus sign: white is 0.0 and not -0.0.
    density: NDArray[np.float32] = np.maximum(np.float32(0.0) - np.log10(light), np.float32(0.0))
    return density


def _unit_rows(stains: ArrayLike) -> NDArray[np.float64]:
    rows = np.atleast_2d(np.asarray(stains, np.float64))
    if rows.ndim != 2 or rows.shape[1] != 3 or not 1 <= len(rows) <= 3 or np.linalg.matrix_rank(rows) < len(rows):
        raise ConfigError(f"Stains must be 1 to 3 independent vectors (red, green, blue); found {rows.tolist()}.")
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
