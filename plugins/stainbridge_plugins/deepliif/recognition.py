"""Know a nucleus again by its pixels, wherever its window begins and although its outline may have changed a little.

Source of the sketch: Broder, On the resemblance and containment of documents (1997): the smallest hashes of a set stand for it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB, LabelMap

from .cells import Mask

_SLOTS = 1 << 23
_LANDMARKS = 8
_LEAST_SHARE = 0.5
_SIZE_TOLERANCE = 0.25
_HASH_BITS = 40
_HASH = np.uint64((1 << _HASH_BITS) - 1)
# Odd constants of splitmix64 (Steele et al. 2014); products wrap at 64 bits.
_STEP, _FIRST, _SECOND = (np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Traits(NamedTuple):
    """What is remembered of nuclei: share of positive pixels and brightest marker, float64 (n,) each; NaN where not known."""

    p_positive: NDArray[np.float64]
    marker: NDArray[np.float64]

    @property
    def known(self) -> Mask:
        """Which nuclei are known, bool (n,)."""
        return ~np.isnan(self.p_positive)


class Memory:
    """Traits of the nuclei that were remembered last, in a table of a fixed size (126 MB) that holds about 400,000.

    Each nucleus is filed under its landmarks: those 8 of its pixels whose surroundings of 3 x 3 px have the smallest hashes. Of a
    nucleus that lost or gained pixels, about as many landmarks remain as pixels.
    """

    def __init__(self) -> None:
        self._keys = np.zeros(_SLOTS, np.uint64)
        self._p_positive = np.zeros(_SLOTS, np.float32)
        self._marker = np.zeros(_SLOTS, np.uint8)
        self._area = np.zeros(_SLOTS, np.uint16)

    def remember(self, ihc: RGB, labels: LabelMap, traits: Traits) -> None:
        """File the nuclei 1..n of int32 (H, W) `labels` on uint8 (H, W, 3) `ihc`; newer ones replace older ones."""
        hashes, owners = _landmarks(ihc, labels)
        slots = hashes & np.uint64(_SLOTS - 1)
        self._keys[slots] = hashes
        self._p_positive[slots] = traits.p_positive[owners]
        self._marker[slots] = traits.marker[owners]
        self._area[slots] = _areas(labels, len(traits.p_positive))[owners]

    def recall(self, ihc: RGB, labels: LabelMap) -> Traits:
        """Return the traits of the nuclei 1..n, the mean over landmarks.

        Known are those that have at least half of their landmarks from nuclei of their own size, give or take a quarter: a label
        that another method drew over or inside a nucleus is not that nucleus.
        """
        n = int(labels.max(initial=0))
        slots, owners, marks = self._found(ihc, labels)
        own, theirs = _areas(labels, n)[owners].astype(np.float64), self._area[slots].astype(np.float64)
        alike = np.abs(own - theirs) <= _SIZE_TOLERANCE * np.maximum(own, theirs)
        slots, owners = slots[alike], owners[alike]
        hits = np.bincount(owners, minlength=n)
        return self._means(slots, owners, (hits > 0) & (hits >= _LEAST_SHARE * marks))

    def pieces(self, ihc: RGB, labels: LabelMap) -> Traits:
        """Return the traits of the nuclei 1..n as parts of remembered ones: one landmark is enough, and sizes may differ."""
        slots, owners, marks = self._found(ihc, labels)
        return self._means(slots, owners, np.bincount(owners, minlength=len(marks)) > 0)

    def _found(self, ihc: RGB, labels: LabelMap) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the slots of landmarks that are on file, the index of the nucleus of each, and how many landmarks each nucleus has."""
        hashes, owners = _landmarks(ihc, labels)
        slots = hashes & np.uint64(_SLOTS - 1)
        found = self._keys[slots] == hashes
        return slots[found], owners[found], np.bincount(owners, minlength=int(labels.max(initial=0)))

    def _means(self, slots: NDArray[np.uint64], owners: NDArray[np.int64], known: Mask) -> Traits:
        hits = np.maximum(np.bincount(owners, minlength=len(known)), 1)
        means = [
            np.where(known, np.bincount(owners, of[slots], len(known)) / hits, np.nan)
            for of in (self._p_positive, self._marker)
        ]
        return Traits(*means)


def _areas(labels: LabelMap, n: int) -> NDArray[np.uint16]:
    """Return the pixels of the nuclei 1..n, at most 65,535."""
    return np.minimum(np.bincount(labels.ravel(), minlength=n + 1)[1 : n + 1], 65_535).astype(np.uint16)


def _landmarks(ihc: RGB, labels: LabelMap) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashes of the landmarks of all nuclei, and the index 0..n-1 of the nucleus of each."""
    pixels = np.flatnonzero(labels)
    # One number holds the nucleus and, below it, the hash: its order is all that is needed.
    keys = (labels.ravel()[pixels].astype(np.uint64) - np.uint64(1)) << np.uint64(_HASH_BITS)
    keys |= _surroundings(ihc, pixels) & _HASH
    keys.sort()
    owners = (keys >> np.uint64(_HASH_BITS)).astype(np.int64)
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    rank = np.arange(len(owners)) - np.repeat(starts, np.diff(starts, append=len(owners)))
    smallest = rank < _LANDMARKS
    return keys[smallest] & _HASH, owners[smallest]


def _surroundings(ihc: RGB, pixels: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a hash of the 3 x 3 px around each pixel of uint8 (H, W, 3), given by its index in (H, W)."""
    red, green, blue = (np.pad(ihc[..., channel], 1, mode="edge").astype(np.uint64) for channel in range(3))
    colour = ((red << np.uint64(16)) | (green << np.uint64(8)) | blue).ravel()
    width = ihc.shape[1]
    corner = pixels + pixels // width * 2  # in the padded picture, which is two pixels wider
    hashes = np.full(len(pixels), _STEP)
    for row in range(3):
        for column in range(3):
            hashes ^= colour[corner + (row * (width + 2) + column)]
            hashes *= _FIRST
    hashes ^= hashes >> np.uint64(30)
    hashes *= _SECOND
    return hashes ^ (hashes >> np.uint64(31))
