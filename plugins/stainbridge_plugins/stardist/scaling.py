"""From pixels to what the network sees: channels, and grey levels stretched between two percentiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB

Grey = Literal["inverted", "mean"]
_EPSILON = np.float32(1e-20)


@dataclass(frozen=True)
class Limits:
    """Grey levels that become 0 and 1: float64 (1, 1, C), or (1, 1, 1) for all channels."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """How pixels are prepared.

    Parameters
    ----------
    channels : 3 leaves red, green and blue; 1 makes grey
    grey : "mean" of the channels, or "inverted", 255 less the mean: nuclei, dark in bright field, become bright
    percentiles : those that become 0 and 1
    jointly : one pair of limits for all channels
    least_span : grey levels between the limits at least, so that the noise of empty glass stays small
    """

    channels: Literal[1, 3]
    grey: Grey
    percentiles: tuple[float, float]
    jointly: bool
    least_span: float

    def picture(self, pixels: RGB) -> NDArray[Any]:
        """Return (..., C) of uint8 (..., 3) pixels: uint8 for three channels, float32 for one; 0..255."""
        if self.channels == 3:
            return pixels
        mean = pixels.mean(axis=-1, keepdims=True, dtype=np.float32)
        grey: NDArray[np.float32] = mean if self.grey == "mean" else np.float32(255) - mean
        return grey

    def is_flat(self, pixels: RGB) -> bool:
        """Return whether no channel of uint8 (H, W, 3) pixels reaches over `least_span` grey levels: noise, and no object."""
        picture = self.picture(pixels)
        return bool((picture.max(axis=(0, 1)) - picture.min(axis=(0, 1))).max() < self.least_span)

    def limits(self, pixels: RGB) -> Limits:
        """Return the limits of uint8 (..., H, W, 3) pixels, all windows together.

        Percentiles as csbdeep's `normalize` takes them.
        """
        picture = self.picture(pixels)
        axes = None if self.jointly else tuple(range(picture.ndim - 1))
        low, high = np.percentile(picture, self.percentiles, axis=axes, keepdims=True)
        low, high = low.reshape(1, 1, -1), high.reshape(1, 1, -1)
        return Limits(low, np.maximum(high, low + self.least_span))

    def apply(self, pixels: RGB, limits: Limits) -> NDArray[np.float32]:
        """Return float32 (H, W, C) of uint8 (H, W, 3) pixels; beyond 0..1 outside the limits, as in csbdeep."""
        low, high = limits.low.astype(np.float32), limits.high.astype(np.float32)
        stretched: NDArray[np.float32] = (self.picture(pixels).astype(np.float32) - low) / (high - low + _EPSILON)
        return stretched
