"""HistomicsTK's positive-pixel rule: pixels in a band of hue count as positive, and their intensity says how strongly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from stainbridge import RGB
from stainbridge.color import rgb_to_hsi

NEGATIVE, WEAK, PLAIN, STRONG = range(4)


class PositivePixels(BaseModel):
    """The seven parameters of the rule, and the behaviour of its hue band.

    Hue, saturation and intensity are fractions of their full range. Source: HistomicsTK 1.4.0 `positive_pixel_count`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hue_value: float = Field(0.05, ge=0, le=1, description="centre of the hue band; 0.05 is DAB brown")
    hue_width: float = Field(0.15, ge=0, le=1, description="width of the hue band")
    saturation_minimum: float = Field(0.05, ge=0, le=1, description="lowest saturation of a positive pixel")
    intensity_upper_limit: float = Field(0.95, ge=0, description="a positive pixel is darker than this")
    intensity_weak_threshold: float = Field(0.65, ge=0, le=1, description="weak from this intensity up")
    intensity_strong_threshold: float = Field(0.35, ge=0, le=1, description="strong below this intensity")
    intensity_lower_limit: float = Field(0.05, ge=0, le=1, description="a positive pixel is at least this bright")
    wrap: bool = Field(True, description="hue band continues from 0 to 1; false as HistomicsTK before February 2023")


def positive_pixels(rgb: RGB, parameters: PositivePixels) -> NDArray[np.uint8]:
    """Label every pixel 0 negative, 1 weak, 2 positive or 3 strong.

    Parameters
    ----------
    rgb : uint8 (..., 3)

    Returns
    -------
    uint8 (...)
    """
    return _label(rgb_to_hsi(rgb), parameters)


def positive_pixel_stats(rgb: RGB, parameters: PositivePixels) -> dict[str, float]:
    """Return the statistics of one picture under HistomicsTK 1.4.0's field names; a ratio of nothing is 0."""
    hsi = rgb_to_hsi(rgb)
    labels, intensity = _label(hsi, parameters), hsi[..., 2]
    count = {grade: float((labels == grade).sum()) for grade in (WEAK, PLAIN, STRONG)}
    total = {grade: float(intensity[labels == grade].sum()) for grade in (WEAK, PLAIN, STRONG)}
    positive = sum(count.values())
    return {
        "NumberWeakPositive": count[WEAK],
        "NumberPositive": count[PLAIN],
        "NumberStrongPositive": count[STRONG],
        "NumberTotalPixels": float(labels.size),
        "IntensitySumWeakPositive": total[WEAK],
        "IntensitySumPositive": total[PLAIN],
        "IntensitySumStrongPositive": total[STRONG],
        "IntensityAverage": _ratio(sum(total.values()), positive),
        "RatioStrongToTotal": _ratio(count[STRONG], positive),
        "IntensityAverageWeakAndPositive": _ratio(total[WEAK] + total[PLAIN], count[WEAK] + count[PLAIN]),
        "RatioStrongToPixels": _ratio(count[STRONG], labels.size),
        "RatioWeakToPixels": _ratio(count[WEAK], labels.size),
        "RatioTotalToPixels": _ratio(positive, labels.size),
    }


def is_positive(hsi: NDArray[np.float64], parameters: PositivePixels) -> NDArray[np.bool_]:
    """Return which colours, float64 (..., 3) hue, saturation, intensity, the rule calls positive."""
    hue, saturation, intensity = np.moveaxis(hsi, -1, 0)
    shifted = hue - parameters.hue_value + 0.5
    distance = np.abs((shifted % 1.0 if parameters.wrap else shifted) - 0.5)
    return (
        (distance <= parameters.hue_width / 2.0)
        & (saturation >= parameters.saturation_minimum)
        & (intensity < parameters.intensity_upper_limit)
        & (intensity >= parameters.intensity_lower_limit)
    )


def _label(hsi: NDArray[np.float64], parameters: PositivePixels) -> NDArray[np.uint8]:
    intensity = hsi[..., 2]
    grade = np.full(intensity.shape, PLAIN, np.uint8)
    grade[intensity < parameters.intensity_strong_threshold] = STRONG
    grade[intensity >= parameters.intensity_weak_threshold] = WEAK
    return np.where(is_positive(hsi, parameters), grade, np.uint8(NEGATIVE))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def mean_hsi(rgb: RGB, groups: NDArray[Any], n: int) -> NDArray[np.float64]:
    """Return the mean hue, saturation and intensity per group 1..n, float64 (n, 3).

    `rgb` is uint8 (K, 3) and `groups` int (K,). Hue is an angle: its mean is the direction of the mean vector.
    """
    hsi = rgb_to_hsi(rgb)
    angle = 2.0 * np.pi * hsi[:, 0]
    columns = (np.cos(angle), np.sin(angle), hsi[:, 1], hsi[:, 2])
    size = np.maximum(np.bincount(groups, minlength=n + 1)[1:], 1)
    east, north, saturation, intensity = (np.bincount(groups, c, n + 1)[1:] / size for c in columns)
    return np.stack([np.arctan2(north, east) / (2.0 * np.pi) % 1.0, saturation, intensity], axis=1)
