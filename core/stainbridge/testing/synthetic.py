"""Synthetic IHC and H&E with known nuclei: truth that no annotator disputes.

Stains are laid down as optical density, so that unmixing with the same vectors gives back what was put in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stainbridge.color import DAB, EOSIN, HAEMATOXYLIN
from stainbridge.errors import ConfigError
from stainbridge.records import RGB, Image, LabelMap, Labels, Sample

DIAMETER_UM = (6.0, 12.0)
"""Smallest and largest mean diameter of a nucleus in micrometres."""

_SHAPES = 512  # outlines to draw from: more would not look different, and making one costs more than placing it
_TRIES, _ROUNDS = 64, 40  # places tried at once, and how often

Seed = int | np.random.Generator


@dataclass(frozen=True)
class SyntheticLabels:
    """A label map and the halo that it takes to tile it without loss.

    Parameters
    ----------
    array : int32 (H, W), ids 1..n in random places, each one connected object
    half_extent_px : the longest distance, along y or x, from a nucleus's centroid to its farthest pixel
    """

    array: LabelMap
    half_extent_px: float


def synthetic_labels(
    shape: tuple[int, int], nuclei: int, *, rng: Seed = 0, mpp: float = 0.25, gap_px: int = 1
) -> SyntheticLabels:
    """Scatter rounded, slightly irregular nuclei without overlap.

    Parameters
    ----------
    shape : (height, width) in pixels
    nuclei : how many; those at the rim are cut by it, as in a real field
    rng : a seed or a `Generator`
    mpp : micrometres per pixel; nuclei are 6 to 12 um across (4096 x 4096 holds 20,000 at 0.5)
    gap_px : background between neighbours; 0 lets them touch

    Raises
    ------
    ConfigError
        If so many do not fit.
    """
    rng = np.random.default_rng(rng)
    field = _Field(shape, rng)
    outlines = [_outline(rng, mpp, gap_px) for _ in range(min(nuclei, _SHAPES))]
    for label in range(1, nuclei + 1):
        if not field.place(label, outlines[int(rng.integers(len(outlines)))]):
            raise ConfigError(
                f"{nuclei} nuclei were asked for in {shape[0]} x {shape[1]} px at {mpp} um per pixel; "
                f"only {label - 1} fit. Ask for fewer, or for a larger picture."
            )
    return SyntheticLabels(field.labels, _half_extent_px(field.labels))


def synthetic_ihc(
    *,
    shape: tuple[int, int] = (512, 512),
    nuclei: int = 100,
    positive_fraction: float = 0.3,
    mpp: float = 0.25,
    seed: Seed = 0,
) -> Sample:
    """Make IHC: pale blue haematoxylin nuclei, and brown DAB ones, over pale tissue.

    Parameters
    ----------
    shape : (height, width) in pixels
    nuclei : how many
    positive_fraction : share of brown nuclei; exactly `round(positive_fraction * nuclei)` of them
    mpp : micrometres per pixel
    seed : a seed or a `Generator`; one seed gives one picture

    Returns
    -------
    Sample
        Source `Image` uint8 (H, W, 3), truth `Labels` int32 (H, W), positive bool (nuclei,).
    """
    rng = np.random.default_rng(seed)
    labels = synthetic_labels(shape, nuclei, rng=rng, mpp=mpp).array
    positive = rng.permutation(np.arange(nuclei) < round(positive_fraction * nuclei))
    blue = np.where(positive, rng.uniform(0.10, 0.25, nuclei), rng.uniform(0.30, 0.65, nuclei))
    brown = np.where(positive, rng.uniform(0.50, 1.20, nuclei), rng.uniform(0.00, 0.03, nuclei))
    density = _stain(labels, blue, 0.06, mpp, rng) * HAEMATOXYLIN
    density = density + _stain(labels, brown, 0.03, mpp, rng) * DAB
    image = Image(_expose(density, rng), mpp, "synthetic_ihc")
    return Sample(image, Labels(labels, mpp), positive)


def synthetic_he(
    *, shape: tuple[int, int] = (512, 512), nuclei: int = 100, mpp: float = 0.25, seed: Seed = 0
) -> Sample:
    """Make H&E: blue-violet nuclei over pink tissue; parameters as `synthetic_ihc`, and no classes."""
    rng = np.random.default_rng(seed)
    labels = synthetic_labels(shape, nuclei, rng=rng, mpp=mpp).array
    density = _stain(labels, rng.uniform(0.55, 1.10, nuclei), 0.06, mpp, rng) * HAEMATOXYLIN
    density = density + _stain(labels, np.full(nuclei, 0.15), 0.22, mpp, rng) * EOSIN
    return Sample(Image(_expose(density, rng), mpp, "synthetic_he"), Labels(labels, mpp))


def blank_glass(shape: tuple[int, int] = (256, 256), *, seed: Seed = 0) -> RGB:
    """Make empty glass: near white with the noise of a camera; uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    return _expose(np.full((*shape, 3), 0.02), rng)


def dark_tissue(shape: tuple[int, int] = (256, 256), *, seed: Seed = 0) -> RGB:
    """Make a fold or crushed tissue: brown-black from rim to rim, without nuclei; uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    return _expose(np.full((*shape, 3), 1.0) + 0.6 * DAB, rng)


@dataclass(frozen=True)
class _Outline:
    """Masks of one nucleus, all square with one odd side: itself, with its gap, and where no other centre fits."""

    body: NDArray[np.bool_]
    claim: NDArray[np.bool_]
    shadow: NDArray[np.bool_]


def _outline(rng: np.random.Generator, mpp: float, gap_px: int) -> _Outline:
    """Draw the outline of a nucleus: an ellipse with three shallow dents."""
    radius = rng.uniform(*DIAMETER_UM) / 2 / mpp
    stretch, turn = rng.uniform(1.0, 1.25), rng.uniform(0, np.pi)
    dents, phase = rng.uniform(0.0, 0.05), rng.uniform(0, 2 * np.pi)
    # A centre within the smallest nucleus's inner radius of another's rim is bound to overlap: known without trying.
    inner = DIAMETER_UM[0] / 2 / mpp / 1.25 * 0.95
    half = int(np.ceil((radius + inner) * stretch * 1.1)) + gap_px
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    reach = np.hypot(along / stretch, across * stretch)
    limit = radius * (1 + dents * np.cos(3 * np.arctan2(across, along) + phase))
    return _Outline(reach <= limit, reach <= limit + gap_px * stretch, reach <= limit + inner / stretch)


class _Field:
    """A label map that fills up."""

    def __init__(self, shape: tuple[int, int], rng: np.random.Generator) -> None:
        self.labels = np.zeros(shape, np.int32)
        self._shadow = np.zeros(shape, bool)
        self._rng = rng

    def place(self, label: int, outline: _Outline) -> bool:
        """Draw the outline at a free place; return False where none was found."""
        for _ in range(_ROUNDS):
            y, x = self._rng.integers((0, 0), self.labels.shape, size=(_TRIES, 2)).T
            for index in np.flatnonzero(~self._shadow[y, x]):
                if self._draw(label, outline, int(y[index]), int(x[index])):
                    return True
        return False

    def _draw(self, label: int, outline: _Outline, y: int, x: int) -> bool:
        half = outline.body.shape[0] // 2
        top, left = max(y - half, 0), max(x - half, 0)
        canvas = np.s_[top : y + half + 1, left : x + half + 1]
        window = self.labels[canvas]
        height, width = window.shape
        mask = np.s_[top - y + half : top - y + half + height, left - x + half : left - x + half + width]
        if window[outline.claim[mask]].any():
            return False
        window[outline.body[mask]] = label
        self._shadow[canvas] |= outline.shadow[mask]
        return True


def _half_extent_px(labels: LabelMap) -> float:
    """Return the longest distance along an axis from a centroid to a pixel of the same object."""
    ys, xs = np.nonzero(labels)
    ids = labels[ys, xs]
    if not len(ids):
        return 0.0
    area = np.maximum(np.bincount(ids), 1)
    return float(max(np.abs(axis - (np.bincount(ids, axis) / area)[ids]).max() for axis in (ys, xs)))


def _stain(
    labels: LabelMap, amount: NDArray[np.float64], ground: float, mpp: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the stain per pixel, float64 (H, W, 1): nuclei with chromatin over uneven ground, blurred by the lens."""
    from scipy.ndimage import gaussian_filter, uniform_filter

    def grain(size_um: float) -> NDArray[np.float64]:
        field = rng.standard_normal(labels.shape, dtype=np.float32)
        for _ in range(2):  # two boxes: as soft as a Gaussian of this sigma, at a cost that does not grow with it
            field = uniform_filter(field, max(1, round(2.45 * size_um / mpp)), mode="wrap")
        return np.asarray(field / max(float(field.std()), 1e-9), np.float64)

    tissue = ground * np.clip(1 + 0.35 * grain(6.0) + 0.15 * grain(0.8), 0, None)
    chromatin = np.clip(1 + 0.14 * grain(0.5), 0.3, None)
    inked = np.where(labels > 0, np.append(0.0, amount)[labels] * chromatin + tissue, tissue)
    return np.asarray(gaussian_filter(inked, 0.25 / mpp), np.float64)[..., None]


def _expose(density: NDArray[np.float64], rng: np.random.Generator) -> RGB:
    """Return uint8 RGB of an optical density (H, W, 3), with the noise of a camera (2 grey levels)."""
    light = 245.0 * np.power(10.0, -density) + rng.normal(0.0, 2.0, density.shape)
    rounded: RGB = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    return rounded
