"""Checks on segmenters alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stainbridge.capabilities import Describing, Streaming
from stainbridge.errors import ContractViolation
from stainbridge.interfaces import Segmenter
from stainbridge.records import LabelMap, check_label_map, check_values

from .subject import Subject, pixels, require
from .synthetic import DIAMETER_UM, blank_glass

_RECALL = 0.5
_IOU, _AGREEING = 0.9, 0.95


def returns_labels_without_gaps(subject: Subject) -> None:
    """Each picture of a batch has ids 0..n of its own, without gaps."""
    batch = np.concatenate([subject.batch(seed=seed) for seed in (0, 1)])
    for index, labels in enumerate(subject.fitted(batch)(batch.copy())):
        try:
            check_label_map(labels, f"Picture {index} of 2")
        except ContractViolation as error:
            require(False, str(error))


def finds_no_nuclei_on_blank_glass(subject: Subject) -> None:
    """Empty glass has no nuclei."""
    glass = blank_glass((subject.side_px(),) * 2)[None]
    count = int(subject.fitted(glass)(glass.copy()).max())
    require(count == 0, f"Blank glass has no nuclei; {count} were found.")


def finds_the_synthetic_nuclei(subject: Subject) -> None:
    """It finds at least half of the nuclei of a synthetic picture, and not more than twice as many objects."""
    sample = subject.sample()
    batch = pixels(sample)[None]
    labels = subject.fitted(batch)(batch.copy())[0]
    truth, found = sample.truth.array, int(labels.max())
    count = int(truth.max())
    y, x = np.rint(_centroids(labels)).astype(int).T
    hit = len(np.unique(truth[y, x][truth[y, x] > 0]))
    require(hit >= _RECALL * count, f"{hit} of {count} nuclei hold the centroid of a found object; half is the least.")
    require(found <= 2 * count, f"{found} objects were found where there are {count} nuclei.")


def does_not_depend_on_the_window(subject: Subject) -> None:
    """Two overlapping windows of one picture have the same nuclei away from their rims."""
    reach = _reach_px(subject)
    whole, side, shift = subject.moved(at_least=2 * reach + 192)
    call = subject.fitted(whole)
    first = np.zeros((side + shift, side + shift), np.int32)
    second = first.copy()
    first[:side, :side] = call(whole[:, :side, :side].copy())[0]
    second[shift:, shift:] = call(whole[:, shift:, shift:].copy())[0]
    centres = _centroids(first)
    inside = ((centres >= shift + reach) & (centres < side - reach)).all(axis=1)
    overlap = _best_iou(first, second)[inside]
    same = float(np.mean(overlap >= _IOU)) if len(overlap) else 1.0
    require(
        same >= _AGREEING,
        f"Of {len(overlap)} nuclei at least {reach} px from the rims, {same:.0%} have an IoU of {_IOU} or more with a "
        f"nucleus of the window moved by {shift} px; {_AGREEING:.0%} is the least.",
    )


def describes_its_nuclei_if_it_can(subject: Subject) -> None:
    """What it tells belongs to the labels of `segment`: one value per nucleus, by the same names in every picture."""
    plugin = subject.plugin
    if not isinstance(plugin, Describing):
        return
    assert isinstance(plugin, Segmenter)
    glass = blank_glass((subject.side_px(),) * 2)
    batch = np.stack([subject.batch()[0], glass])
    labels, values = plugin.describe(batch.copy())
    require(len(values) == len(batch), f"{len(batch)} pictures were given, {len(values)} are described.")
    require(np.array_equal(labels, plugin.segment(batch.copy())), "The labels are not those of `segment`.")
    if isinstance(plugin, Streaming):
        streamed = list(plugin.stream([one[None].copy() for one in batch]))
        require(len(streamed) == len(batch), f"Of {len(batch)} batches, {len(streamed)} came out of `stream`.")
        same = all(np.array_equal(one.labels[0], its) for one, its in zip(streamed, labels, strict=True))
        require(same, "The labels of `stream` are not those of `describe`, batch by batch.")
    names = [list(its) for its in values]
    require(names[0] == names[1], f"The names depend on the picture: {names[0]} and, on blank glass, {names[1]}.")
    for one, its in zip(labels, values, strict=True):
        try:
            check_values(its, int(one.max(initial=0)), "A picture")
        except ContractViolation as error:
            require(False, str(error))


def _reach_px(subject: Subject) -> int:
    """Return the distance from a rim at which nuclei must be the same: at least the halo, and a nucleus if it fits."""
    halo, tile = subject.wants.halo, subject.wants.tile
    wide = max(halo, math.ceil(1.25 * DIAMETER_UM[1] / subject.mpp))
    return halo if tile and tile < 2 * wide + 64 else wide


def _centroids(labels: LabelMap) -> NDArray[np.float64]:
    """Return (y, x) of the labels 1..n, float64 (n, 2)."""
    ys, xs = np.nonzero(labels)
    ids = labels[ys, xs]
    size = np.maximum(np.bincount(ids, minlength=1)[1:], 1)
    return np.stack([np.bincount(ids, axis, 1)[1:] / size for axis in (ys, xs)], axis=1)


def _best_iou(labels: LabelMap, other: LabelMap) -> NDArray[np.float64]:
    """Return per label 1..n of `labels` its largest IoU with a label of `other`, float64 (n,)."""
    count, others = int(labels.max()), int(other.max())
    both = np.zeros((count + 1, others + 1))
    np.add.at(both, (labels.ravel(), other.ravel()), 1)
    union = both.sum(1)[:, None] + both.sum(0)[None] - both
    iou = both / np.maximum(union, 1)
    best: NDArray[np.float64] = iou[1:, 1:].max(axis=1, initial=0)
    return best


CHECKS = (
    returns_labels_without_gaps,
    finds_no_nuclei_on_blank_glass,
    finds_the_synthetic_nuclei,
    does_not_depend_on_the_window,
    describes_its_nuclei_if_it_can,
)
