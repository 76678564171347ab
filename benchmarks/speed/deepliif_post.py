"""DeepLIIF's post-processings against the same rules walked pixel by pixel, as the original walks, compiled by numba: equal results.

Run: python benchmarks/speed/deepliif_post.py
Needs: numba, OpenCV.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numba import njit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import medians, write

from stainbridge.testing.synthetic import synthetic_ihc
from stainbridge_plugins.deepliif import rules_1_1_2, rules_current

CASES = ((512, 100), (1024, 400), (2048, 1600))
"""Side in pixels, nuclei."""


@njit
def flood(mask, start, group, group_number, straight):
    """Number one connected group of a mask from a flat index on; return how many pixels it has."""
    height, width = mask.shape
    waiting = [start]
    group[start // width, start % width] = group_number
    size = 0
    while len(waiting) > 0:
        at = waiting.pop()
        size += 1
        y, x = at // width, at % width
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                if straight and dy != 0 and dx != 0:
                    continue
                ny, nx = y + dy, x + dx
                if 0 <= ny < height and 0 <= nx < width and mask[ny, nx] and group[ny, nx] == 0:
                    group[ny, nx] = group_number
                    waiting.append(ny * width + nx)
    return size


@njit
def groups(mask, straight):
    """Return the groups of a mask, numbered from 1, and their sizes."""
    group = np.zeros(mask.shape, np.int32)
    sizes = [0]
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x] and group[y, x] == 0:
                sizes.append(flood(mask, y * mask.shape[1] + x, group, len(sizes), straight))
    return group, sizes


@njit
def counted(group, number, mask):
    """Return how many pixels of a mask each group has."""
    found = np.zeros(number, np.int64)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x]:
                found[group[y, x]] += 1
    return found


def walked_1_1_2(ihc, seg):
    """Return the mask of release 1.1.2: 0, 1 positive, 2 negative."""
    grey = cv2.cvtColor(ihc, cv2.COLOR_RGB2GRAY)
    red, blue = (
        np.minimum(seg[..., c] + np.where(seg[..., c] > 10, grey * 0.1, 0), 255).astype(np.uint8) for c in (0, 2)
    )
    positive = (red > 80) & (blue <= red) & (seg[..., 1] < 80)
    negative = (blue > 80) & (red < blue) & (seg[..., 1] < 80)
    group, sizes = groups(positive | negative, False)
    reds, blues = (counted(group, len(sizes), mask) for mask in (positive, negative))
    called = np.where(reds >= blues, 1, 2) * (np.array(sizes) >= 50)
    colour = called[group] * (group > 0)
    filled = []
    for one in (1, 2):
        holes, sizes = groups(colour != one, False)
        small = np.array(sizes) < 20
        filled.append((colour == one) | (small[holes] & (holes > 0)))
    return np.where(filled[1], 2, filled[0])


def walked_current(seg):
    """Return cells of the current release with their sizes, before any is left out for its size."""
    counts = (seg[..., 0].astype(int) + seg[..., 2] > 120) & (seg[..., 1] <= 80)
    ways, sizes = groups(~counts, True)
    outside = np.zeros(len(sizes), bool)
    for border in (ways[0], ways[-1], ways[:, 0], ways[:, -1]):
        outside[border] = True
    outside[0] = False
    return groups(~outside[ways], False)


def segmentation(side, nuclei):
    """Return IHC and a picture as the networks make it: coloured nuclei with dents, green outlines, specks and holes."""
    sample = synthetic_ihc(shape=(side, side), nuclei=nuclei, mpp=0.25, seed=0)
    labels, rng = sample.truth.array, np.random.default_rng(0)
    positive = np.concatenate([[False], sample.positive])[labels]
    level = rng.integers(90, 256, labels.shape)
    seg = np.zeros((side, side, 3), np.uint8)
    seg[..., 0], seg[..., 2] = level * (positive & (labels > 0)), level * (~positive & (labels > 0))
    inner = cv2.erode((labels > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    seg[(labels > 0) & ~inner, 1] = 200
    specks = rng.random(labels.shape) < 0.01
    seg[specks] = rng.integers(0, 256, (int(specks.sum()), 3))
    return sample.source.pixels, seg


def main() -> None:
    """Print the ratios and write them to results."""
    figures = {}
    old, new = rules_1_1_2.Rules(), rules_current.Rules(noise_px=0)
    for side, nuclei in CASES:
        ihc, seg = segmentation(side, nuclei)
        equal = np.array_equal(old.mask(ihc, seg), walked_1_1_2(ihc, seg))
        equal &= np.array_equal(new.components(seg)[0].labels, walked_current(seg)[0])
        seconds = medians(
            {
                "1.1.2": lambda ihc=ihc, seg=seg: old.mask(ihc, seg),
                "1.1.2, walked": lambda ihc=ihc, seg=seg: walked_1_1_2(ihc, seg),
                "current": lambda seg=seg: new.components(seg),
                "current, walked": lambda seg=seg: walked_current(seg),
                "all of 1.1.2": lambda ihc=ihc, seg=seg: old.cells(ihc, seg, reading="interior+outline"),
                "all of current": lambda ihc=ihc, seg=seg: new.cells(ihc, seg, reading="interior+outline"),
            }
        )
        figures[f"{side} px, {nuclei} nuclei"] = {
            "equal": bool(equal),
            **{f"{name}: ms": 1e3 * one for name, one in seconds.items()},
            **{f"{name}: walked / ours": seconds[f"{name}, walked"] / seconds[name] for name in ("1.1.2", "current")},
        }
    print(figures)
    packages = ("numba", "opencv-python-headless", "scipy", "scikit-image")
    print(write("deepliif_post", "python benchmarks/speed/deepliif_post.py", figures, *packages))


if __name__ == "__main__":
    main()
