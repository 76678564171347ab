"""The nuclei table (area, centroid, three channel means) against scikit-image's regionprops_table.

Run: python benchmarks/speed/table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from skimage.measure import regionprops_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import medians, write

from stainbridge.measure import regions
from stainbridge.testing.synthetic import synthetic_labels

PROPERTIES = ("area", "centroid", "mean_intensity")
CASES = ((512, 200), (1024, 1250), (2048, 5000))


def main() -> None:
    """Print the ratios and write them to results."""
    figures = {}
    for side, nuclei in CASES:
        labels = synthetic_labels((side, side), nuclei, rng=0, mpp=0.5).array
        values = np.random.default_rng(0).random((side, side, 3)).astype(np.float32)
        theirs = regionprops_table(labels, values, properties=PROPERTIES)
        ours = regions(labels, values)
        same = all(np.allclose(ours.means[:, c], theirs[f"mean_intensity-{c}"], rtol=1e-4) for c in range(3))
        same &= np.array_equal(ours.area_px, theirs["area"]) and np.allclose(ours.y, theirs["centroid-0"])
        seconds = medians(
            {
                "ours": lambda labels=labels, values=values: regions(labels, values),
                "skimage": lambda labels=labels, values=values: regionprops_table(
                    labels, values, properties=PROPERTIES
                ),
            }
        )
        figures[f"{side} px, {nuclei} nuclei"] = {
            "equal": bool(same),
            "ours_ms": 1e3 * seconds["ours"],
            "skimage_ms": 1e3 * seconds["skimage"],
            "skimage / ours": seconds["skimage"] / seconds["ours"],
        }
    print(figures)
    print(write("table", "python benchmarks/speed/table.py", figures, "scikit-image"))


if __name__ == "__main__":
    main()
