"""Turn pictures into the planes that a network sees: which channels, on which scale of grey, dark side up or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB


@dataclass(frozen=True)
class Range:
    """The values of each plane that become 0 and 1.

    Parameters
    ----------
    low, high : float32 (C,), grey levels
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]


def planes(batch: RGB, channels: tuple[int, ...]) -> NDArray[np.float32]:
    """Return float32 (N, H, W, C), 0..255, of uint8 (N, H, W, 3); channel 0 is the mean, 1 to 3 are red, green and blue."""
    pixels = batch.astype(np.float32)
    chosen = [pixels.mean(axis=-1) if channel == 0 else pixels[..., channel - 1] for channel in channels]
    return np.stack(chosen, axis=-1)


def fit(values: NDArray[np.float32], percentiles: tuple[float, float], *, least: float, dark: bool) -> Range:
    """Return the range of each plane of float32 (..., C) between two percentiles.

    A range below `least` grey levels is widened on the side of the nuclei (the dark one if `dark`), so that the noise of empty
    glass stays near the value of glass.
    """
    flat = values.reshape(-1, values.shape[-1])
    low = np.array([np.percentile(plane, percentiles[0]) for plane in flat.T], np.float32)
    high = np.array([np.percentile(plane, percentiles[1]) for plane in flat.T], np.float32)
    if dark:
        return Range(np.minimum(low, high - np.float32(least)), high)
    return Range(low, np.maximum(high, low + np.float32(least)))


def scaled(values: NDArray[np.float32], limits: Range, *, invert: bool) -> NDArray[np.float32]:
    """Return float32 (..., C) with `limits` at 0 and 1, or with `invert` at 1 and 0; values beyond them are kept."""
    unit = (values - limits.low) / (limits.high - limits.low)
    return 1 - unit if invert else unit
