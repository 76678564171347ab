"""Checks on positivity classifiers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stainbridge.records import RGB, LabelMap, Sample

from .subject import Subject, pixels, require, require_array
from .synthetic import blank_glass, dark_tissue

_ROUNDING = 1e-6
_ORDERED = 0.9


def returns_one_probability_per_nucleus(subject: Subject) -> None:
    """It returns float64 (n,) in [0, 1], in the order of the ids."""
    sample = subject.sample()
    _classified(subject, pixels(sample), sample.truth.array, "A picture")


def accepts_a_picture_without_nuclei(subject: Subject) -> None:
    """An empty label map gives an array of length 0, and no numerical warning."""
    glass = blank_glass()
    _classified(subject, glass, np.zeros(glass.shape[:2], np.int32), "A picture without nuclei")


def accepts_blank_glass_and_dark_tissue(subject: Subject) -> None:
    """White, black, glass and folds below a label still give a probability, and no numerical warning."""
    labels = subject.sample(side_px=256).truth.array
    flat = [np.full((256, 256, 3), level, np.uint8) for level in (0, 255)]
    for name, ihc in zip(("Black", "White", "Glass", "A fold"), [*flat, blank_glass(), dark_tissue()], strict=True):
        _classified(subject, ihc, labels, name)


def accepts_a_nucleus_of_one_pixel(subject: Subject) -> None:
    """The smallest nucleus, in the corner of the picture, gets a probability like any other."""
    labels = np.zeros((256, 256), np.int32)
    labels[0, 0], labels[-1, -1] = 1, 2
    _classified(subject, pixels(subject.sample(side_px=256)), labels, "Two nuclei of one pixel")


def calls_brown_above_blue(subject: Subject) -> None:
    """Of the pairs of a brown and a blue nucleus, at least nine in ten have the brown one on top."""
    sample = subject.sample()
    assert sample.positive is not None
    p = _classified(subject, pixels(sample), sample.truth.array, "A picture")
    share = float(np.mean(p[sample.positive][:, None] > p[~sample.positive][None]))
    require(share >= _ORDERED, f"In {share:.0%} of the pairs the brown nucleus is on top; 90% is the least.")


def has_a_threshold_between_0_and_1(subject: Subject) -> None:
    """Its operating point is a probability, and some of the brown and not all of the blue nuclei are at or above it."""
    threshold, sample = subject.plugin.threshold, subject.sample()
    require(isinstance(threshold, float) and 0 <= threshold <= 1, f"`threshold` must be 0..1; found {threshold!r}.")
    assert sample.positive is not None
    called = _classified(subject, pixels(sample), sample.truth.array, "A picture") >= threshold
    brown, blue = called[sample.positive].mean(), called[~sample.positive].mean()
    require(brown > blue, f"At threshold {threshold:.3g}, {brown:.0%} of brown and {blue:.0%} of blue are positive.")


def does_not_depend_on_the_numbering(subject: Subject) -> None:
    """Other ids give the same nuclei the same probabilities."""
    sample = subject.sample()
    labels = sample.truth.array
    count = int(labels.max())
    order = np.random.default_rng(0).permutation(count)
    renumbered = np.concatenate([[0], order + 1]).astype(np.int32)[labels]
    p = _classified(subject, pixels(sample), labels, "A picture")
    q = _classified(subject, pixels(sample), renumbered, "A picture with other ids")
    _require_equal(q[order], p, "With other ids")


def does_not_depend_on_the_window(subject: Subject) -> None:
    """A nucleus cut out with the declared halo around it gets the probability that it has in the whole picture."""
    sample, halo = subject.sample(), subject.wants.halo
    labels, ihc = sample.truth.array, pixels(sample)
    whole = _classified(subject, ihc, labels, "A picture")
    alone = [_alone(subject, sample, label, halo) for label in range(1, len(whole) + 1)]
    _require_equal(np.array(alone), whole, "Cut out")


def is_deterministic(subject: Subject) -> None:
    """The same picture gives the same probabilities, also from a classifier that is constructed anew."""
    sample = subject.sample()
    ihc, labels = pixels(sample), sample.truth.array
    first = _classified(subject, ihc, labels, "A picture")
    second = _classified(subject, ihc, labels, "A picture")
    require(np.array_equal(first, second), "A second call gave other probabilities.")
    anew = subject.make().classify(ihc.copy(), labels.copy())
    require(np.array_equal(first, anew), "A second instance gave other probabilities.")


def does_not_write_into_its_input(subject: Subject) -> None:
    """Picture and labels are unchanged afterwards, and may be read-only views."""
    sample = subject.sample()
    ihc, labels = pixels(sample).copy(), sample.truth.array.copy()
    first = subject.plugin.classify(ihc, labels)
    untouched = np.array_equal(ihc, pixels(sample)) and np.array_equal(labels, sample.truth.array)
    require(untouched, "The picture or the label map was changed.")
    wide = np.repeat(ihc, 2, axis=1), np.repeat(labels, 2, axis=1)
    for array in wide:
        array.setflags(write=False)
    again = subject.plugin.classify(wide[0][:, ::2], wide[1][:, ::2])
    require(np.array_equal(first, again), "Read-only views with strides gave other probabilities than plain arrays.")


def _classified(subject: Subject, ihc: RGB, labels: LabelMap, what: str) -> NDArray[np.float64]:
    count = int(labels.max(initial=0))
    p: NDArray[np.float64] = subject.plugin.classify(ihc.copy(), labels.copy())
    require_array(p, np.float64, (count,), what)
    require(bool(((p >= 0) & (p <= 1)).all()), f"{what} returned values that are NaN or outside [0, 1]: {p}.")
    return p


def _alone(subject: Subject, sample: Sample, label: int, halo: int) -> float:
    labels = sample.truth.array
    ys, xs = np.nonzero(labels == label)
    box = np.s_[max(ys.min() - halo, 0) : ys.max() + halo + 1, max(xs.min() - halo, 0) : xs.max() + halo + 1]
    ids, window = np.unique(labels[box], return_inverse=True)
    shift = 0 if ids[0] == 0 else 1
    window = (window.reshape(labels[box].shape) + shift).astype(np.int32)
    p = _classified(subject, pixels(sample)[box], window, f"Nucleus {label} cut out")
    return float(p[np.searchsorted(ids, label) + shift - 1])


def _require_equal(found: NDArray[np.float64], expected: NDArray[np.float64], what: str) -> None:
    worst = float(np.abs(found - expected).max(initial=0))
    require(worst <= _ROUNDING, f"{what}, the probability of a nucleus changed by up to {worst:.3g}.")


CHECKS = (
    returns_one_probability_per_nucleus,
    accepts_a_picture_without_nuclei,
    accepts_blank_glass_and_dark_tissue,
    accepts_a_nucleus_of_one_pixel,
    calls_brown_above_blue,
    has_a_threshold_between_0_and_1,
    does_not_depend_on_the_numbering,
    does_not_depend_on_the_window,
    is_deterministic,
    does_not_write_into_its_input,
)
