"""Hold results against truth: values of each picture, pooled values, intervals, differences."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import DRAWINGS, paired_difference, score_intervals
from .capabilities import Poolable
from .config import Choice, RunConfig
from .datasets import Dataset, open_dataset
from .discovery import Built, build, catalog
from .errors import ConfigError, ContractViolation, UnknownPlugin, nearest
from .interfaces import Metric
from .pipeline import Stages, run_stages
from .records import Result, Sample
from .scores import Combination, Difference, ImageScore, Scores


def metric_names(asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names asked for, or those of every installed metric.

    Raises
    ------
    UnknownPlugin
        If one is not installed; names the nearest.
    """
    known = sorted(found.name for found in catalog().found if found.kind == "metric")
    for name in asked:
        if name not in known:
            raise UnknownPlugin(f"No metric is named {name!r}.{nearest(name, known)} Installed: {', '.join(known)}.")
    return tuple(asked) or tuple(known)


def build_metrics(names: Iterable[str]) -> dict[str, Built]:
    """Construct metrics by name."""
    return {name: build("metric", name) for name in names}


def update_all(metrics: Mapping[str, Metric], result: Result, truth: Sample) -> dict[str, float]:
    """Show one picture to every metric; return the values by "METRIC/KEY".

    Raises
    ------
    ContractViolation
        If a metric returns something other than floats by name.
    """
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        found = metric.update(result, truth)
        if not isinstance(found, dict) or not all(isinstance(one, float | int) for one in found.values()):
            raise ContractViolation(f"Metric {name!r} must return floats by name; found {found!r}.")
        values |= {f"{name}/{key}": float(value) for key, value in found.items()}
    return values


def columns_of(name: str, images: Sequence[ImageScore]) -> dict[str, NDArray[np.float64]]:
    """Return the values of one metric as columns over the pictures, by the metric's own keys."""
    prefix = f"{name}/"
    keys = [key for key in (images[0].values if images else {}) if key.startswith(prefix)]
    return {
        key.removeprefix(prefix): np.array([one.values.get(key, math.nan) for one in images], np.float64)
        for key in keys
    }


def pooled_values(metrics: Mapping[str, Metric], images: Sequence[ImageScore]) -> dict[str, float]:
    """Return the pooled values of the metrics that pool from the values of pictures, by "METRIC/KEY"."""
    pooled: dict[str, float] = {}
    for name, metric in metrics.items():
        if isinstance(metric, Poolable) and images:
            found = metric.pool(columns_of(name, images), np.ones((1, len(images))))
            pooled |= {f"{name}/{key}": float(value[0]) for key, value in found.items()}
    return pooled


def pooled_intervals(
    metrics: Mapping[str, Metric], images: Sequence[ImageScore], *, times: int = DRAWINGS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return 95 % bootstrap intervals over pictures of the pooled values, by "METRIC/KEY"; see `bootstrap`."""
    spread: dict[str, tuple[float, float]] = {}
    for name, metric in metrics.items():
        if isinstance(metric, Poolable) and images:
            found = score_intervals(metric, columns_of(name, images), times=times, seed=seed)
            spread |= {f"{name}/{key}": pair for key, pair in found.items()}
    return spread


def compare(
    metrics: Mapping[str, Metric],
    a: Scores,
    b: Scores,
    values: Iterable[str],
    *,
    times: int = DRAWINGS,
    seed: int = 0,
) -> list[Difference]:
    """Return a minus b for each of `values`, on the pictures that both finished, resampled together.

    Values that one of them does not have are left out.
    """
    ours, theirs = ({one.picture: one for one in cell.done} for cell in (a, b))
    common = [picture for picture in ours if picture in theirs]
    if not common:
        return []
    found: list[Difference] = []
    wanted = [value.partition("/") for value in values]
    for name in dict.fromkeys(metric for metric, _, _ in wanted):
        metric = metrics.get(name)
        if not isinstance(metric, Poolable):
            continue
        sides = [columns_of(name, [side[picture] for picture in common]) for side in (ours, theirs)]
        if sides[0].keys() != sides[1].keys():
            continue
        paired = paired_difference(metric, *sides, times=times, seed=seed)
        names = a.combination.dataset, a.combination.method, b.combination.method
        found += [
            Difference(*names, f"{name}/{key}", *paired[key], len(common))
            for metric_name, _, key in wanted
            if metric_name == name and key in paired
        ]
    return found


def by_subset(metrics: Mapping[str, Metric], images: Sequence[ImageScore]) -> dict[str, dict[str, float]]:
    """Return the pooled values of each subset, where there are subsets."""
    names = sorted({one.subset for one in images if one.subset})
    return {name: pooled_values(metrics, [one for one in images if one.subset == name]) for name in names}


def evaluate(
    data: str | Mapping[str, Any] | Dataset | Iterable[Sample],
    translator: str | Choice | None = None,
    segmenter: str | Choice | None = None,
    classifier: str | Choice | None = None,
    *,
    metrics: Sequence[str] = (),
    config: RunConfig | None = None,
) -> Scores:
    """Run one combination on pictures with truth, in this process, and score it.

    Parameters
    ----------
    data : name or table of a data set, an opened one, or samples
    translator, segmenter, classifier : as in `stainbridge.run`; None takes those of `config`, else the defaults
    metrics : names; empty takes every installed one
    config : everything else that can be set

    Returns
    -------
    Scores
        One `ImageScore` per picture, a failed one with its error; pooled values and intervals. `.to_pandas()` gives the
        table of pictures.

    Raises
    ------
    StainbridgeError
        If the data set or the plugins cannot be had; what goes wrong with one picture is in its row.

    Examples
    --------
    >>> from stainbridge.testing import synthetic_ihc
    >>> scores = evaluate([synthetic_ihc(shape=(128, 128), nuclei=12)], "identity", "baseline/ihc", metrics=["dice"])
    >>> scores.pooled["dice/dice_pooled"] > 0.5
    True
    """
    named = {"translator": translator, "segmenter": segmenter, "classifier": classifier}
    chosen = (config or RunConfig()).replace(**{kind: one for kind, one in named.items() if one is not None})
    stages, built = Stages.build(chosen), build_metrics(metric_names(metrics))
    instances: dict[str, Metric] = {name: one.plugin for name, one in built.items()}
    name, samples = _samples(data, chosen)
    images = tuple(_score(sample, subset, stages, instances) for subset, sample in samples)
    done = [one for one in images if one.status == "done"]
    if not images:
        raise ConfigError(f"{name}: there is no picture to evaluate.")
    parts = {kind: _label(one) if one else None for kind, one in stages.plugins().items()}
    computed = {name: metric.compute() for name, metric in instances.items()} if done else {}
    pooled = {f"{metric}/{key}": value for metric, values in computed.items() for key, value in values.items()}
    return Scores(
        Combination(name, parts["translator"], parts["segmenter"] or "", parts["classifier"]),
        images,
        pooled,
        pooled_intervals(instances, done, seed=chosen.seed),
        by_subset(instances, done),
        facts={
            "plugins": {kind: one and dict(one.facts) for kind, one in stages.plugins().items()},
            "config": chosen.to_dict(),
        },
    )


def _samples(
    data: str | Mapping[str, Any] | Dataset | Iterable[Sample], config: RunConfig
) -> tuple[str, Iterable[tuple[str, Any]]]:
    """Return the name, and per picture its subset and what gives the sample."""
    if isinstance(data, str | Mapping):
        data = open_dataset(data, offline=config.offline, registries=config.registries)
    if isinstance(data, Dataset):
        return data.name, [(item.subset, item) for item in data.items]
    return "samples", [("", sample) for sample in data]


def _score(given: Any, subset: str, stages: Stages, metrics: Mapping[str, Metric]) -> ImageScore:
    name = given.source.name if isinstance(given, Sample) else given.name
    start = time.perf_counter()
    try:
        sample = given if isinstance(given, Sample) else given.sample()
        result = run_stages(sample.source, stages)
        ran = time.perf_counter()
        values = update_all(metrics, result, sample)
    except (Exception, SystemExit) as error:  # a plugin may raise anything; the other pictures must not pay for it
        return ImageScore(name, "failed", f"{type(error).__name__}: {error}", subset=subset)
    seconds = {"run": ran - start, "evaluate": time.perf_counter() - ran}
    return ImageScore(
        name, "done", "", values, len(result.nuclei), seconds, subset=subset, finished_ms=time.time_ns() // 1_000_000
    )


def _label(built: Built) -> str:
    return str(built.facts["model"] or built.facts["name"])
