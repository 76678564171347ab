"""The colour of a picture where there is no tissue."""

from __future__ import annotations

import numpy as np

from stainbridge import RGB


def glass_colour(pixels: RGB) -> tuple[float, float, float]:
    """Return red, green and blue of the brightest twentieth of uint8 (K, 3) pixels, each at least 200.

    The median of the brightest pixels is the lamp's white where there is glass, the palest stroma where there is none; the lower
    bound keeps a picture without any pale pixel from being taken for glass.
    """
    brightness = pixels.sum(axis=1, dtype=np.int64)
    brightest = pixels[brightness >= np.percentile(brightness, 95)]
    red, green, blue = np.maximum(np.median(brightest, axis=0), 200.0).tolist()
    return red, green, blue
