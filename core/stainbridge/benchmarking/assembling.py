"""From rows of pictures to the scores of a cell, and from cells to paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..capabilities import Poolable
from ..datasets import Dataset
from ..evaluation import build_metrics, by_subset, compare, pooled_intervals, pooled_values
from ..interfaces import Metric
from ..provenance import software
from ..scores import EMPTY, ORACLE, Difference, ImageScore, Scores
from ..suite import Suite
from .plan import CONTROLS, Cell, file_names
from .work import load_prediction, read_json

_FLOOR = CONTROLS[0].name, CONTROLS[1].name


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
    scores = Scores(
        cell.combination, tuple(rows), flags=cell.flags, facts=_facts(cell, dataset, done), error=cell.error
    )
    try:
        return replace(
            scores,
            pooled=pooled_values(metrics, done) | _recomputed(metrics, dataset, done, folder),
            intervals=pooled_intervals(metrics, done, times=suite.bootstraps, seed=suite.seed),
            subsets=by_subset(metrics, done),
        )
    except Exception as error:  # a stranger's metric may raise anything; the other cells must not pay for it
        return replace(scores, error=f"The values of pictures could not be pooled: {type(error).__name__}: {error}")


def differences(suite: Suite, cells: Sequence[Scores], metrics: Mapping[str, Metric]) -> list[Difference]:
    """Compare each method with the suite's reference translators under the same segmenter, with the baseline, and with the best.

    The same pictures are drawn for both.
    """
    found: list[Difference] = []
    for cell in cells:
        if not cell.pooled or cell.combination.segmenter in (ORACLE, EMPTY):
            continue
        for other in _references(suite, cell, cells):
            found += compare(metrics, cell, other, suite.compared, times=suite.bootstraps, seed=suite.seed)
    return found


def _references(suite: Suite, cell: Scores, cells: Sequence[Scores]) -> list[Scores]:
    named = cell.combination
    alike = [one for one in cells if one is not cell and one.pooled and one.combination.dataset == named.dataset]
    same = [
        one
        for one in alike
        if (one.combination.segmenter, one.combination.classifier) == (named.segmenter, named.classifier)
        and _rank(suite, one) < _rank(suite, cell)
    ]
    floor = [
        one for one in alike if (one.combination.translator, one.combination.segmenter) == _FLOOR and one not in same
    ]
    chosen = same + (floor[:1] if named.segmenter != _FLOOR[1] else [])
    methods = [one for one in alike if one.combination.role == "method"] if named.role == "method" else []
    for value in suite.compared:
        known = [one for one in methods if not math.isnan(one.pooled.get(value, math.nan))]
        if known:
            chosen.append(max(known, key=lambda one: one.pooled[value]))
    return [one for index, one in enumerate(chosen) if one not in chosen[:index]]


def _rank(suite: Suite, cell: Scores) -> int:
    """Return the place of a cell's translator among the references; all others come after them, alike."""
    translator = cell.combination.translator
    return suite.reference.index(translator) if translator in suite.reference else len(suite.reference)


def _recomputed(
    metrics: Mapping[str, Metric], dataset: Dataset, done: Sequence[ImageScore], folder: Path
) -> dict[str, float]:
    """Return pooled values of metrics that cannot pool from rows: they are shown the saved predictions once more."""
    names = [name for name, metric in metrics.items() if not isinstance(metric, Poolable)]
    if not names or not done:
        return {}
    left: dict[str, Metric] = {name: one.plugin for name, one in build_metrics(names).items()}
    finished = {row.picture for row in done}
    for item, name in zip(dataset.items, file_names(dataset), strict=True):
        if item.name in finished:
            sample = item.sample()
            he = read_json(folder / "images" / f"{name}.json")["he"]
            place = folder.parent.parent / he if he else None
            result = load_prediction(folder / "predictions" / f"{name}.npz", sample, place)
            for metric in left.values():
                metric.update(result, sample)
    return {f"{name}/{key}": float(value) for name, metric in left.items() for key, value in metric.compute().items()}


def _facts(cell: Cell, dataset: Dataset, done: Sequence[ImageScore]) -> dict[str, Any]:
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
        "predictions made by": sorted({image.made_by for image in done}),
        "software": software(),
        "device": cell.config.device,
    }
