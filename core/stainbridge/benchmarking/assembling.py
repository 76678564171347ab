"""From rows of pictures to the scores of a cell, and from cells to paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datasets import Dataset
from ..evaluation import by_subset, compare, pooled_intervals, pooled_values
from ..interfaces import Metric, Poolable
from ..provenance import software
from ..scores import Difference, ImageScore, Scores
from ..suite import Suite
from .plan import Cell, file_names
from .work import load_prediction


def assemble(
    cell: Cell,
    rows: Sequence[ImageScore],
    metrics: Mapping[str, Metric],
    suite: Suite,
    dataset: Dataset,
    folder: Path,
) -> Scores:
    """Return the scores of a cell: pooled values, intervals, subsets, flags and provenance."""
    done = [row for row in rows if row.status == "done"]
    pooled = pooled_values(metrics, done) | _recomputed(metrics, dataset, done, folder)
    return Scores(
        cell.combination,
        tuple(rows),
        pooled,
        pooled_intervals(metrics, done, times=suite.bootstraps, seed=suite.seed),
        by_subset(metrics, done),
        cell.flags,
        _facts(cell, dataset),
        cell.error,
    )


def differences(suite: Suite, cells: Sequence[Scores], metrics: Mapping[str, Metric]) -> list[Difference]:
    """Compare each method with the suite's reference translator under the same segmenter, with the baseline, and with the best.

    The same pictures are drawn for both.
    """
    found: list[Difference] = []
    for cell in cells:
        if not cell.done or cell.combination.segmenter in ("oracle", "empty"):
            continue
        for other in _references(suite, cell, cells):
            found += compare(metrics, cell, other, suite.compared, times=suite.bootstraps, seed=suite.seed)
    return found


def _references(suite: Suite, cell: Scores, cells: Sequence[Scores]) -> list[Scores]:
    named = cell.combination
    alike = [one for one in cells if one is not cell and one.done and one.combination.dataset == named.dataset]
    same = [
        one
        for one in alike
        if (one.combination.segmenter, one.combination.classifier) == (named.segmenter, named.classifier)
        and one.combination.translator == suite.reference
        and named.translator != suite.reference
    ]
    floor = [
        one
        for one in alike
        if one.combination.segmenter == "baseline" and one.combination.translator == "identity" and one not in same
    ]
    chosen = same[:1] + (floor[:1] if named.segmenter != "baseline" else [])
    methods = [one for one in alike if one.combination.role == "method"] if named.role == "method" else []
    for value in suite.compared:
        known = [one for one in methods if not math.isnan(one.pooled.get(value, math.nan))]
        if known:
            chosen.append(max(known, key=lambda one: one.pooled[value]))
    return [one for index, one in enumerate(chosen) if one not in chosen[:index]]


def _recomputed(
    metrics: Mapping[str, Metric], dataset: Dataset, done: Sequence[ImageScore], folder: Path
) -> dict[str, float]:
    """Return pooled values of metrics that cannot pool from rows: they are shown the saved predictions once more."""
    left = {name: type(metric)() for name, metric in metrics.items() if not isinstance(metric, Poolable)}
    if not left or not done:
        return {}
    names = dict(zip((item.name for item in dataset.items), file_names(dataset), strict=True))
    finished = {row.picture for row in done}
    for item in dataset.items:
        if item.name in finished:
            sample = item.sample()
            result = load_prediction(folder / "predictions" / f"{names[item.name]}.npz", sample, None)
            for metric in left.values():
                metric.update(result, sample)
    return {f"{name}/{key}": float(value) for name, metric in left.items() for key, value in metric.compute().items()}


def _facts(cell: Cell, dataset: Dataset) -> dict[str, Any]:
    card = dataset.card
    return {
        "key": cell.key,
        "plugins": cell.facts,
        "config": cell.config.to_dict(),
        "data": {
            "name": dataset.name,
            "split": dataset.split,
            "reading": dataset.reading,
            "pictures": len(dataset),
            "stain": card.stain,
            "mpp": card.mpp,
            "licence": card.licence,
            "commercial": card.commercial,
            "citation": card.citation,
            "remarks": list(dataset.remarks),
        },
        "software": software(),
        "device": cell.config.device,
    }
