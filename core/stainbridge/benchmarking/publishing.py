"""Write tables, figures and the page, and log everything; all of it is made from what lies on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..datasets import Dataset, Item
from ..errors import MissingExtra
from ..io import atomic_write
from ..records import RGB, LabelMap
from ..report.figures import write_figures
from ..report.page import write_page
from ..report.panels import Panel, paint
from ..report.tables import image_row, write_records, write_tables
from ..scores import EMPTY, ORACLE, Benchmark, Scores
from ..suite import Suite
from ..tracking import Run, Tracker
from .plan import Cell, digest, file_names
from .work import load_labels, open_he

Told: TypeAlias = Callable[[str, int, int, str], None]
"""Told (what, steps done, steps in all, a failure or an empty string)."""


@dataclass
class Publisher:
    """Gives out what a benchmark found, cell by cell and at the end.

    Parameters
    ----------
    tracker : logs to MLflow
    suite, out, datasets : of the benchmark
    tell : told what MLflow will never take
    """

    tracker: Tracker
    suite: Suite
    out: Path
    datasets: Sequence[Dataset]
    tell: Told

    def __post_init__(self) -> None:
        self._parent = self._start()

    def _start(self) -> Run:
        key = f"suite {digest({'name': self.suite.name, 'folder': str(self.out.resolve())})}"
        parent = self.tracker.run(key, self.suite.name, tags={"stainbridge.kind": "suite"})
        # Tags and not parameters, which MLflow never changes: a suite may grow and go on in the same folder.
        parent.tags({f"suite.{name}": json.dumps(value) for name, value in self.suite.to_dict().items()})
        parent.artifact(self.out / "suite.json")
        return parent

    def cell(self, cell: Cell, scores: Scores, folder: Path) -> None:
        """Log one cell as a run below the suite's: settings, pooled values, the table of pictures, files."""
        named = scores.combination
        tags = {
            "stainbridge.kind": "cell",
            "dataset": named.dataset,
            "translator": named.translator or "none",
            "segmenter": named.segmenter,
            "classifier": named.classifier or cell.config.classifier.name,
            "role": named.role,
            "commit": ", ".join(scores.facts["predictions made by"]) or "none",
            "flags": "; ".join(scores.flags) or "none",
        }
        run = self.tracker.run(
            f"cell {cell.key} {named.method}", f"{named.dataset}: {named.method}", parent=self._parent, tags=tags
        )
        facts = {key: scores.facts[key] for key in ("plugins", "config", "data", "device")}
        # Where models are named may change when a suite goes on; MLflow never changes a parameter.
        registries = facts["config"].get("registries", [])
        facts["config"] = {key: value for key, value in facts["config"].items() if key != "registries"}
        run.params({"facts": facts})
        run.tags({"versions": json.dumps(scores.facts["software"]), "registries": json.dumps(registries)})
        finished_ms = max((one.finished_ms for one in scores.done), default=1)
        run.metrics({**scores.pooled, **_intervals(scores), **_costs(scores)}, time_ms=finished_ms)
        run.table([_shown(image_row(scores, image)) for image in scores.images], "images")
        run.artifact(folder / "scores.json")
        for path in self._paintings(cell, scores, folder):
            run.figure(path)
        run.finish("FAILED" if scores.failed and not scores.done else "FINISHED")
        for refused in self.tracker.flush().refused:
            self.tell("MLflow", 0, 0, f"MLflow refuses: {refused}")

    def _paintings(self, cell: Cell, scores: Scores, folder: Path) -> Iterator[Path]:
        """Write the first pictures with what was found blue, invented red and missed green, and yield their paths."""
        from PIL import Image as Pillow

        dataset = next(one for one in self.datasets if one.name == scores.combination.dataset)
        done = {one.picture for one in scores.done}
        pairs = list(zip(dataset.items, file_names(dataset), strict=True))[: self.suite.figure_pictures]
        for item, name in pairs:
            path = folder / "figures" / f"{name}.png"
            if item.name in done and cell.answer == "run":
                sample = item.sample()
                ihc = sample.source.read(0, 0, *sample.source.shape)
                path.parent.mkdir(exist_ok=True)
                with atomic_write(path) as new:
                    painted = paint(ihc, sample.truth.array, load_labels(folder / "predictions" / f"{name}.npz"))
                    Pillow.fromarray(painted).save(new)
                yield path

    def whole(self, found: Benchmark, cells: Mapping[tuple[str, str], Cell]) -> None:
        """Write tables, figures and the page to the folder, and log them with the suite's run."""
        tables = [*write_tables(found, self.out / "tables"), *write_records(found, self.out)]
        try:
            figures = write_figures(found, self.out / "figures", self._panels(found, cells))
            page = [write_page(found, self.out)]
        except MissingExtra as error:
            figures, page = (), []
            with atomic_write(self.out / "NO_FIGURES.txt") as path:
                path.write_text(f"{error}\nThen run the benchmark again: what is finished is kept.\n", "utf-8")
        for path in tables:
            self._parent.artifact(path, "tables")
        for path in figures:
            self._parent.figure(path)
        for path in page:
            self._parent.artifact(path)
        self._parent.metrics(
            {"cells": len(found.cells), "pictures failed": sum(len(one.failed) for one in found.cells)}
        )
        self._parent.finish()

    def _panels(self, found: Benchmark, cells: Mapping[tuple[str, str], Cell]) -> dict[str, list[Panel]]:
        shown: dict[str, list[Panel]] = {}
        for dataset in self.datasets:
            scored = [one for one in found.cells if one.combination.dataset == dataset.name]
            names = file_names(dataset)
            pairs = list(zip(dataset.items, names, strict=True))[: self.suite.figure_pictures]
            panels = [self._panel(item, name, scored, cells) for item, name in pairs]
            shown[dataset.name] = [panel for panel in panels if panel is not None]
        return shown

    def _panel(
        self, item: Item, name: str, scored: Sequence[Scores], cells: Mapping[tuple[str, str], Cell]
    ) -> Panel | None:
        found: dict[str, LabelMap] = {}
        he: dict[str, RGB] = {}
        for scores in scored:
            named = scores.combination
            if named.segmenter in (ORACLE, EMPTY) or item.name not in {one.picture for one in scores.done}:
                continue
            folder = self.out / "cells" / cells[named.dataset, named.method].slug
            found[named.method] = load_labels(folder / "predictions" / f"{name}.npz")
            row = json.loads((folder / "images" / f"{name}.json").read_text("utf-8"))
            if named.translator and named.translator not in he and row.get("he"):
                picture = open_he(self.out / row["he"])
                he[named.translator] = picture.read(0, 0, *picture.shape)
        if not found:
            return None
        sample = item.sample()
        ihc = sample.source.read(0, 0, *sample.source.shape)
        return Panel(item.name, ihc, sample.truth.array, he, found)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a picture as MLflow shows it: values first, no column that is the same for all."""
    return {key: row[key] for key in row if key not in ("dataset", "method", "error")} | {"error": row["error"]}


def _intervals(scores: Scores) -> dict[str, float]:
    ends: dict[str, float] = {}
    for key, (low, high) in scores.intervals.items():
        ends |= {f"{key} low": low, f"{key} high": high}
    return ends


def _costs(scores: Scores) -> dict[str, float]:
    """Return seconds by stage, summed over pictures, and the largest peak memory."""
    totals: dict[str, Any] = {"images done": len(scores.done), "images failed": len(scores.failed)}
    for image in scores.done:
        for stage, seconds in image.seconds.items():
            totals[f"seconds {stage}"] = totals.get(f"seconds {stage}", 0.0) + seconds
    peaks = [image.peak_mb for image in scores.done if image.peak_mb is not None]
    return {key: float(value) for key, value in totals.items()} | ({"peak MB": max(peaks)} if peaks else {})
