"""Checks on metrics. A metric accumulates, so that each check starts from a new one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from stainbridge.capabilities import Poolable
from stainbridge.records import LabelMap, Labels, Nuclei, Result, Sample

from .subject import MPP, Subject, picture, require


def returns_named_floats(subject: Subject) -> None:
    """`update` and `compute` return floats by name, finite where there are nuclei; the names of pictures are alike."""
    metric, truth = subject.make(), _truth(0)
    first = _named(metric.update(_result(truth), truth), "update")
    second = _named(metric.update(_result(truth, keep=0.5), truth), "update")
    pooled = _named(metric.compute(), "compute")
    unknown = [name for values in (first, second, pooled) for name, value in values.items() if not math.isfinite(value)]
    require(not unknown, f"Not finite although there are nuclei: {', '.join(unknown)}.")
    require(list(first) == list(second), f"The names changed between two pictures: {list(first)} and {list(second)}.")


def tells_perfect_from_empty(subject: Subject) -> None:
    """A perfect prediction and none at all differ in at least one value."""
    truth = _truth(0)
    perfect, nothing = (
        subject.make().update(_result(truth), truth),
        subject.make().update(_result(truth, keep=0), truth),
    )
    require(not _same(perfect, nothing), f"A perfect prediction and none at all both gave {perfect}.")


def accepts_pictures_without_nuclei(subject: Subject) -> None:
    """No truth, no prediction, neither: an answer without numerical warning; NaN is allowed for what is not defined."""
    metric, full, bare = subject.make(), _truth(0), _truth(0, nuclei=0)
    for truth, result in ((bare, _result(bare)), (full, _result(full, keep=0)), (bare, _result(full))):
        _named(metric.update(replace(result, source=truth.source), truth), "update")
    _named(metric.compute(), "compute")


def pools_in_any_order(subject: Subject) -> None:
    """The pooled values do not depend on the order of the pictures."""
    forth, back = subject.make(), subject.make()
    pairs = [
        (_result(truth, keep=keep), truth) for truth, keep in ((_truth(0), 1.0), (_truth(1), 0.5), (_truth(2), 0.0))
    ]
    for result, truth in pairs:
        forth.update(result, truth)
    for result, truth in reversed(pairs):
        back.update(result, truth)
    one, two = forth.compute(), back.compute()
    require(_same(one, two), f"Three pictures in reverse order gave {two} instead of {one}.")


def does_not_depend_on_the_numbering(subject: Subject) -> None:
    """Other ids for the same nuclei give the same values."""
    truth = _truth(0)
    result = _result(truth, keep=0.5)
    labels = result.labels.read(0, 0, *result.labels.shape)
    count = int(labels.max())
    reversed_ids = np.where(labels > 0, count + 1 - labels, 0).astype(np.int32)
    other = _result(truth, labels=reversed_ids)
    one, two = subject.make().update(result, truth), subject.make().update(other, truth)
    require(_same(one, two), f"Other ids gave {two} instead of {one}.")


def instances_do_not_share_state(subject: Subject) -> None:
    """A second instance does not see the pictures of the first, and `compute` can be called twice."""
    truth = _truth(0)
    first, other, second = subject.make(), subject.make(), subject.make()
    first.update(_result(truth), truth)
    alone, again = first.compute(), first.compute()
    require(_same(alone, again), f"A second `compute` gave {again} instead of {alone}.")
    other.update(_result(truth, keep=0), truth)
    second.update(_result(truth), truth)
    require(_same(second.compute(), alone), "An instance was changed by the pictures of another.")


def does_not_write_into_its_input(subject: Subject) -> None:
    """Predicted and true labels are unchanged afterwards."""
    truth = _truth(0)
    result = _result(truth, keep=0.5)
    labels = result.labels.read(0, 0, *result.labels.shape)
    before = labels.copy(), truth.truth.array.copy()
    subject.make().update(result, truth)
    kept = np.array_equal(labels, before[0]) and np.array_equal(truth.truth.array, before[1])
    require(kept, "The predicted or the true labels were changed.")


def pools_from_the_values_of_pictures(subject: Subject) -> None:
    """A `Poolable` metric pools to what `compute` gives, and a picture that weighs two counts as if it were seen twice."""
    if not isinstance(subject.plugin, Poolable):
        return
    pairs = [(_result(truth, keep=keep), truth) for truth, keep in ((_truth(0), 1.0), (_truth(1), 0.5))]
    metric = subject.make()
    rows = [metric.update(*pair) for pair in pairs]
    images = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
    drawn = metric.pool(images, np.array([[1.0, 1.0], [2.0, 1.0]]))
    twice = subject.make()
    for pair in (pairs[0], *pairs):
        twice.update(*pair)
    for row, wanted in ((0, metric.compute()), (1, twice.compute())):
        found = {name: float(values[row]) for name, values in drawn.items()}
        require(_same(found, wanted), f"`pool` gave {found} where `compute` gives {wanted}.")


def _truth(seed: int, nuclei: int = 20) -> Sample:
    return picture("ihc", (256, 256), nuclei, MPP, seed)


def _result(truth: Sample, *, keep: float = 1.0, labels: LabelMap | None = None) -> Result:
    """Return a result that finds the first share `keep` of the true nuclei, with their true class."""
    assert truth.positive is not None
    count = round(keep * len(truth.positive)) if labels is None else int(labels.max())
    if labels is None:
        labels = np.where(truth.truth.array <= count, truth.truth.array, 0).astype(np.int32)
    ids = np.arange(1, count + 1)
    masks = [np.nonzero(labels == label) for label in ids]
    centre = np.array([(ys.mean(), xs.mean()) for ys, xs in masks]).reshape(-1, 2)
    box = np.array([(ys.min(), xs.min(), ys.max() + 1, xs.max() + 1) for ys, xs in masks], np.int64).reshape(-1, 4)
    y, x = np.rint(centre).astype(int).T
    positive = np.append(truth.positive, False)[truth.truth.array[y, x] - 1]
    nuclei = Nuclei(
        label=ids.astype(np.int32),
        y=centre[:, 0],
        x=centre[:, 1],
        area_um2=np.array([len(ys) * MPP**2 for ys, _ in masks]),
        box=box,
        p_positive=positive.astype(np.float64),
        positive=positive,
        grade=positive.astype(np.int8),
        clipped=np.zeros(count, bool),
    )
    return Result(truth.source, Labels(labels, MPP), nuclei, None, {}, {})


def _named(values: Mapping[str, float], method: str) -> Mapping[str, float]:
    ok = isinstance(values, dict) and all(isinstance(k, str) and isinstance(v, float) for k, v in values.items())
    require(ok and len(values) > 0, f"`{method}` must return floats by name, at least one; found {values!r}.")
    return values


def _same(one: Mapping[str, float], two: Mapping[str, float]) -> bool:
    return one.keys() == two.keys() and all(
        math.isclose(one[name], two[name], rel_tol=1e-9) or (math.isnan(one[name]) and math.isnan(two[name]))
        for name in one
    )


CHECKS = (
    returns_named_floats,
    tells_perfect_from_empty,
    accepts_pictures_without_nuclei,
    pools_in_any_order,
    does_not_depend_on_the_numbering,
    instances_do_not_share_state,
    does_not_write_into_its_input,
    pools_from_the_values_of_pictures,
)
