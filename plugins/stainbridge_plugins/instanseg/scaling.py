"""Percentile scaling, as InstanSeg's networks are trained with: each channel from its 0.1th to its 99.9th percentile."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB

PERCENTILES = (0.1, 99.9)

Colour: TypeAlias = tuple[float, float, float]


def darkest_and_brightest(pixels: RGB) -> tuple[Colour, Colour]:
    """Return the two percentiles of red, green and blue of uint8 (..., 3), 0..255."""
    low, high = np.percentile(pixels.reshape(-1, 3), PERCENTILES, axis=0)
    return tuple(low.tolist()), tuple(high.tolist())


def scaled(pixels: RGB, low: Colour, high: Colour, *, least_range: float) -> NDArray[np.float32]:
    """Return uint8 (H, W, 3) as float32 (3, H, W): 0 at `low` and 1 at `high`.

    A channel whose range is under `least_range` keeps its bright end and is stretched no further: on empty glass the range is
    noise, and noise that fills the scale looks like tissue.
    """
    grey = np.arange(256.0)
    channels = []
    for index, (dark, bright) in enumerate(zip(low, high, strict=True)):
        dark = min(dark, bright - least_range)
        channels.append(((grey - dark) / (bright - dark)).astype(np.float32)[pixels[..., index]])
    return np.stack(channels)
