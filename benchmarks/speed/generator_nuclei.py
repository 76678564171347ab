"""The picture that `generator.py` translates, and what a translation changes for a segmenter."""

from __future__ import annotations

from typing import Any

import numpy as np


def picture() -> np.ndarray:
    """Return a real IHC picture, uint8 (512, 512, 3), which scikit-image ships; a synthetic one where that is absent."""
    try:
        from skimage.data import immunohistochemistry
    except ImportError:
        draw = np.random.default_rng(0)
        coarse = draw.integers(60, 240, (64, 64, 3)).astype(np.uint8)
        return np.repeat(np.repeat(coarse, 8, axis=0), 8, axis=1)
    return immunohistochemistry()


def tiled(image: np.ndarray, side: int) -> np.ndarray:
    """Cut uint8 (H, W, 3) into (N, side, side, 3) without overlap."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    cut = image[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    return np.ascontiguousarray(cut.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3))


def untiled(tiles: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Put together what `tiled` cut."""
    side = tiles.shape[1]
    rows, columns = (length // side for length in shape)
    return tiles.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)


def nuclei_apart(expected: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """Return what the `baseline` segmenter finds on two pictures uint8 (H, W, 3) of 0.25 um per pixel, matched at IoU 0.5."""
    try:
        from stainbridge.overlap import match_counts, overlaps
        from stainbridge_plugins.baseline.segmenter import Watershed

        labels = []
        for one in (expected, found):
            segmenter = Watershed().calibrate(one[None])
            labels.append(segmenter.segment(one[None])[0])
    except ImportError as error:
        return {"not_counted": f"{error.name} is not installed"}
    matched = int(np.ravel(match_counts(overlaps(*labels), [50]))[0])
    counts = [int(one.max()) for one in labels]
    return {
        "eager_fp32": counts[0],
        "found": counts[1],
        "matched": matched,
        "f1": round(2 * matched / max(1, sum(counts)), 4),
    }
