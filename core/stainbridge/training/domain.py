"""How far pictures are from a set of H&E pictures, without a network and without a download.

The kernel distance of Bińkowski et al., Demystifying MMD GANs, ICLR 2018 (KID), on features that are computed and not learned: colour,
texture and orientation of windows of 64 px. It is not the KID of Inception features: the two cannot be compared, and neither can values
of this one against different sides of H&E, because features are measured in spreads of that side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..color import DAB, EOSIN, HAEMATOXYLIN, optical_density, unmix
from ..records import RGB

WINDOW_PX = 64
"""Side of a window: a few nuclei at 0.25 um per pixel, and 64 windows in a picture of 512 px."""
LEAST_WINDOWS = 32
"""With fewer on a side there is no distance."""
TISSUE_OD, TISSUE_SHARE = 0.1, 0.25
"""A window counts where at least this share of its pixels has at least this mean optical density."""
SUBSETS, SUBSET_SIZE = 50, 100
"""The distance is a mean over this many drawings of at most this many windows from each side."""
SPLITS = 8
"""Halves of the H&E side are drawn this often."""

Features = NDArray[np.float64]
_Planes = NDArray[np.float32]

_BLOCK = 256  # windows at a time: a bound on memory
_HUES, _SCALES_PX = 12, (0, 1, 2, 4, 8)
_DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.9)
_RING = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
_LEAST_ENERGY = 1e-6  # below the noise of 8-bit pixels
_LEAST_SPREAD = 0.02  # a colour that H&E never shows would otherwise count without bound


class Distance(NamedTuple):
    """A distance, its standard deviation over drawings, and why it is NaN where it is."""

    kid: float
    spread: float
    reason: str = ""


def windows_of(picture: RGB) -> RGB:
    """Cut uint8 (H, W, 3) into windows uint8 (n, 64, 64, 3) from the corner, in reading order; the rest is left out."""
    rows, columns = (side // WINDOW_PX for side in picture.shape[:2])
    cut = picture[: rows * WINDOW_PX, : columns * WINDOW_PX]
    return (
        cut.reshape(rows, WINDOW_PX, columns, WINDOW_PX, 3).swapaxes(1, 2).reshape(-1, WINDOW_PX, WINDOW_PX, 3).copy()
    )


def tissue_share(pictures: RGB) -> NDArray[np.float64]:
    """Return the share of tissue, see `TISSUE_OD`, of pictures uint8 (..., h, w, 3); float64 (...)."""
    shares: NDArray[np.float64] = (optical_density(pictures).mean(axis=-1) >= TISSUE_OD).mean(axis=(-2, -1))
    return shares


def with_tissue(windows: RGB) -> NDArray[np.bool_]:
    """Return which windows uint8 (n, h, w, 3) hold tissue, bool (n,); see `TISSUE_SHARE`."""
    enough: NDArray[np.bool_] = tissue_share(windows) >= TISSUE_SHARE
    return enough


def features(windows: RGB) -> Features:
    """Return what each window looks like.

    Of red, green and blue optical density and of haematoxylin, eosin and DAB: mean, standard deviation, percentiles 5, 50, 95. Of the
    whole: hues weighted by colour, mean colour, a histogram of density (both as square roots of shares). Of density and of
    haematoxylin: logarithms of the energy of the gradient at 0, 1, 2 and 4 px, and of differences of Gaussians between 0, 1, 2, 4 and
    8 px. Of density: uniform local binary patterns (Ojala et al., IEEE PAMI 24:971, 2002) of 3 x 3 pixels at full and half size, and
    the coherence of the structure tensor at 2 and 4 px.

    Parameters
    ----------
    windows : uint8 (n, h, w, 3), sides of at least 16 px, all at one scale

    Returns
    -------
    float64 (n, 89)
    """
    if not len(windows):
        return np.zeros((0, 89))
    blocks = [_features(windows[start : start + _BLOCK]) for start in range(0, len(windows), _BLOCK)]
    found: Features = np.concatenate(blocks).astype(np.float64)
    return found


def mmd2(x: Features, y: Features) -> float:
    """Return the unbiased squared maximum mean discrepancy of two samples under the kernel (x . y / d + 1)^3.

    Parameters
    ----------
    x, y : float64 (n, d) and (m, d), at least two rows each

    Returns
    -------
    Expected 0 for samples of one distribution, and therefore sometimes below. Source: Gretton et al., JMLR 13:723 (2012), equation 3.
    """
    n, m = len(x), len(y)
    within_x, within_y, between = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    own_x = (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
    own_y = (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
    return float(own_x + own_y - 2 * between.mean())


def kid(x: Features, y: Features, *, rng: np.random.Generator, subsets: int = SUBSETS) -> Distance:
    """Return the mean and the standard deviation of `mmd2` over drawings of `SUBSET_SIZE` rows, or of as many as both sides have.

    NaN, with the reason, where a side has fewer than `LEAST_WINDOWS` rows.
    """
    least = min(len(x), len(y))
    if least < LEAST_WINDOWS:
        return Distance(
            math.nan, math.nan, f"{least} windows of {WINDOW_PX} px with tissue on one side; {LEAST_WINDOWS} are needed"
        )
    size = min(SUBSET_SIZE, least)
    values = [mmd2(*(rng.permutation(side)[:size] for side in (x, y))) for _ in range(subsets)]
    return Distance(float(np.mean(values)), float(np.std(values)))


@dataclass(frozen=True)
class Domain:
    """A side of H&E pictures that others are measured against.

    Parameters
    ----------
    pictures : features float64 (n, d) of each picture's windows, standardised
    centre, scale : float64 (d,), what they were standardised by: mean and spread over all windows
    seed : of the drawings; the same for every distance, so that distances can be compared
    """

    pictures: tuple[Features, ...]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    seed: int = 0

    @classmethod
    def of(cls, pictures: Sequence[RGB], *, seed: int = 0) -> Self:
        """Measure the windows with tissue of H&E pictures, uint8 (H, W, 3) each, of any sizes at one scale."""
        found = []
        for picture in pictures:
            windows = windows_of(picture)
            found.append(features(windows[with_tissue(windows)]))
        whole = np.concatenate(found) if found else np.zeros((0, 89))
        if not len(whole):
            return cls((), np.zeros(89), np.ones(89), seed)
        centre, scale = whole.mean(axis=0), whole.std(axis=0) + _LEAST_SPREAD
        return cls(tuple(_standardised(one, centre, scale) for one in found if len(one)), centre, scale, seed)

    def distance(self, windows: RGB) -> Distance:
        """Return the distance of windows, uint8 (n, 64, 64, 3) at the scale of the H&E, from all windows of this side."""
        mine = np.concatenate(self.pictures) if self.pictures else np.zeros((0, len(self.centre)))
        seen = _standardised(features(windows), self.centre, self.scale)
        return kid(seen, mine, rng=np.random.default_rng(self.seed))

    def own(self) -> Distance:
        """Return the distance of one half of this side's pictures from the other, mean over `SPLITS` drawings of halves.

        It holds how pictures differ from one another. A side of one picture is split by windows, which are more alike.
        """
        rng = np.random.default_rng(self.seed)
        units = list(self.pictures)
        if len(units) < 2:
            units = [row[np.newaxis] for one in units for row in one]
        found = []
        for _ in range(SPLITS):
            order = rng.permutation(len(units))
            halves = (order[: len(order) // 2], order[len(order) // 2 :])
            x, y = (_rows([units[index] for index in half], len(self.centre)) for half in halves)
            found.append(kid(x, y, rng=rng, subsets=max(1, SUBSETS // SPLITS)))
        if any(one.reason for one in found):
            return next(one for one in found if one.reason)
        return Distance(float(np.mean([one.kid for one in found])), float(np.std([one.kid for one in found])))


def _rows(units: Sequence[Features], width: int) -> Features:
    return np.concatenate(units) if units else np.zeros((0, width))


def _standardised(values: Features, centre: Features, scale: Features) -> Features:
    """Return values in spreads from the centre, large ones compressed: a cubic kernel would see nothing but them."""
    standardised: Features = np.arcsinh((values - centre) / scale)
    return standardised


def _kernel(x: Features, y: Features) -> Features:
    kernel: Features = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def _features(windows: RGB) -> NDArray[np.floating[Any]]:
    density = optical_density(windows)
    stains = unmix(windows, (HAEMATOXYLIN, EOSIN, DAB))
    grey = density.mean(axis=-1)
    parts = [_moments(density), _moments(stains), _hues(density, grey), _histogram(grey)]
    for plane in (grey, stains[..., 0]):
        parts += _energies(plane)
    parts += [_binary_patterns(grey), _binary_patterns(grey[:, ::2, ::2]), _coherence(grey)]
    return np.concatenate(parts, axis=1)


def _moments(planes: _Planes) -> NDArray[np.floating[Any]]:
    values = planes.reshape(len(planes), -1, planes.shape[-1])
    percentiles = np.percentile(values, (5, 50, 95), axis=1)
    return np.concatenate([values.mean(axis=1), values.std(axis=1), *percentiles], axis=1)


def _hues(density: _Planes, grey: _Planes) -> NDArray[np.floating[Any]]:
    """Return the square roots of the shares of each hue, weighted by colour, and the mean colour; (n, 13)."""
    x, y = density[..., 0] - grey, (density[..., 1] - density[..., 2]) / math.sqrt(3)
    colour = np.hypot(x, y).reshape(len(grey), -1)
    hue = np.floor(np.arctan2(y, x) / (2 * np.pi) % 1 * _HUES).astype(np.intp) % _HUES
    whole = colour.sum(axis=1, keepdims=True)
    counts = _counted(hue, _HUES, colour)
    return np.concatenate([_roots(counts, np.maximum(whole, _LEAST_ENERGY)), whole / colour.shape[1]], axis=1)


def _histogram(grey: _Planes) -> NDArray[np.floating[Any]]:
    bins = np.searchsorted(_DENSITIES, grey.reshape(len(grey), -1))
    return _roots(_counted(bins, len(_DENSITIES) + 1), grey[0].size)


def _energies(plane: _Planes) -> list[NDArray[np.floating[Any]]]:
    """Return log energies of the gradient at each scale but the last, and between scales that follow; (n, 4) each."""
    from scipy.ndimage import gaussian_filter

    levels = [gaussian_filter(plane, (0, px, px), truncate=3) if px else plane for px in _SCALES_PX]
    slopes = [
        (np.diff(one, axis=1)[:, :, :-1] ** 2 + np.diff(one, axis=2)[:, :-1] ** 2).mean(axis=(1, 2)) * max(px, 1) ** 2
        for one, px in zip(levels[:-1], _SCALES_PX, strict=False)
    ]
    blobs = [((fine - coarse) ** 2).mean(axis=(1, 2)) for fine, coarse in pairwise(levels)]
    return [np.log(np.stack(energies, axis=1) + _LEAST_ENERGY) for energies in (slopes, blobs)]


def _binary_patterns(grey: _Planes) -> NDArray[np.floating[Any]]:
    """Return the square roots of the shares of 9 uniform patterns, by how many of 8 neighbours are denser, and of all others."""
    height, width = grey.shape[1] - 2, grey.shape[2] - 2
    middle = grey[:, 1:-1, 1:-1]
    denser = np.stack([grey[:, y : y + height, x : x + width] > middle for y, x in _RING])
    changes = (denser != np.roll(denser, 1, axis=0)).sum(axis=0)
    pattern = np.where(changes <= 2, denser.sum(axis=0), 9)
    return _roots(_counted(pattern, 10), middle[0].size)


def _coherence(grey: _Planes) -> NDArray[np.floating[Any]]:
    from scipy.ndimage import gaussian_filter

    y, x = np.gradient(gaussian_filter(grey, (0, 1, 1)), axis=(1, 2))
    found = []
    for px in (2, 4):
        yy, xx, xy = (gaussian_filter(one, (0, px, px), truncate=3) for one in (y * y, x * x, x * y))
        found.append((np.hypot(yy - xx, 2 * xy) / (yy + xx + _LEAST_ENERGY)).mean(axis=(1, 2)))
    return np.stack(found, axis=1)


def _roots(counts: NDArray[np.float64], whole: Any) -> NDArray[np.float64]:
    """Return the square roots of shares: rare things count, and their chance variation is even."""
    roots: NDArray[np.float64] = np.sqrt(counts / whole)
    return roots


def _counted(
    bins: NDArray[np.integer[Any]], size: int, weights: NDArray[np.floating[Any]] | None = None
) -> NDArray[np.float64]:
    """Return (weighted) counts of the values 0..size - 1 in each row of `bins`, float64 (n, size)."""
    n = len(bins)
    index = bins.reshape(n, -1) + size * np.arange(n)[:, np.newaxis]
    counts = np.bincount(index.ravel(), None if weights is None else weights.ravel(), size * n)
    return counts.reshape(n, size).astype(np.float64)
