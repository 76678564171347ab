"""Drawing of StarDist's polygons into a label map, against stardist's own `polygons_to_label`: the same pixels.

Run: python benchmarks/speed/stardist_labels.py
Needs: stardist.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from stardist.geometry import polygons_to_label

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import medians, write

from stainbridge_plugins.stardist.drawing import draw

CASES = ((512, 200, 8.0), (1024, 1250, 8.0), (2048, 5000, 8.0), (1024, 130, 32.0))
"""Side in pixels, polygons, their mean radius in pixels."""

RAYS = 32


def polygons(side: int, count: int, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return distances, centres and probabilities of round, dented nuclei."""
    rng = np.random.default_rng(0)
    size = rng.uniform(0.7, 1.3, (count, 1)) * radius
    dist = (size * rng.uniform(0.9, 1.1, (count, RAYS))).astype(np.float32)
    return dist, rng.integers(0, side, (count, 2)), rng.random(count, dtype=np.float32)


def main() -> None:
    """Print the ratios and write them to results."""
    figures = {}
    for side, count, radius in CASES:
        dist, points, prob = polygons(side, count, radius)
        shape = (side, side)
        calls = {
            "ours": lambda dist=dist, points=points, prob=prob, shape=shape: draw(dist, points, prob, shape),
            "stardist": lambda dist=dist, points=points, prob=prob, shape=shape: polygons_to_label(
                dist, points, shape, prob=prob
            ),
        }
        equal = np.array_equal(calls["ours"](), calls["stardist"]())
        seconds = medians(calls)
        figures[f"{side} px, {count} polygons of radius {radius:g} px"] = {
            "equal": equal,
            "ours_ms": 1e3 * seconds["ours"],
            "stardist_ms": 1e3 * seconds["stardist"],
            "stardist / ours": seconds["stardist"] / seconds["ours"],
        }
    print(figures)
    print(write("stardist_labels", "python benchmarks/speed/stardist_labels.py", figures, "stardist", "scikit-image"))


if __name__ == "__main__":
    main()
