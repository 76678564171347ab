"""Tables on stdout and progress on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..batch import LEDGER, Entry
from ..loading import Catalog, Problem
from ..pipeline import Progress as Told
from ..records import Result
from ..registry import Registry
from ..scores import Benchmark, Scores, cell_row

PIPE_WIDTH = 4000
"""Columns where no terminal limits them: a table is then as wide as its content."""


def print_json(value: Any) -> None:
    """Print plain values as JSON on stdout."""
    Console().print_json(json.dumps(value, default=str))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Print a table on stdout; None is shown as a dash."""
    # In a pipe there is no window to fit: text is not squeezed there.
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    shown = Table()
    for column in columns:
        justify: Literal["right", "left"] = "right" if column in right else "left"
        shown.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        shown.add_row(*("-" if cell is None else escape(str(cell)) for cell in row))
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(shown)


class BatchProgress:
    """Two bars on stderr: pictures, and the tiles of the picture at hand."""

    def __init__(self, bars: Progress, pictures: int) -> None:
        self._bars = bars
        self._pictures = bars.add_task("pictures", total=pictures)
        self._tiles = bars.add_task("", total=None)

    def start(self, picture: Path) -> Told:
        """Show the picture that begins."""
        name = escape(picture.name)
        self._bars.reset(self._tiles, description=name, total=None)

        def told(stage: str, done: int, total: int) -> None:
            self._bars.update(self._tiles, description=f"{name} {stage}", completed=done, total=total)

        return told

    def finish(self, entry: Entry) -> None:
        """Count a picture; say at once what went wrong with it."""
        self._bars.advance(self._pictures)
        if entry.status == "failed":
            self._bars.console.print(
                f"[red]failed[/red] {escape(entry.picture)}: {escape(entry.error)}", soft_wrap=True
            )


@contextmanager
def batch_progress(pictures: int) -> Iterator[BatchProgress]:
    """Show progress on stderr while the block runs."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield BatchProgress(bars, pictures)


def print_entries(entries: Sequence[Entry], out: Path, *, as_json: bool = False) -> None:
    """Print the ledger of a batch."""
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    rows = [
        (
            e.picture,
            e.status,
            e.nuclei,
            e.positive,
            _rounded(e.percent_positive),
            f"{e.seconds:.1f}",
            e.error.split("\n")[0],
        )
        for e in entries
    ]
    names = ("picture", "status", "nuclei", "positive", "% positive", "seconds", "error")
    table(f"Results in {out} (ledger: {out / LEDGER})", names, rows, right=names[2:6])


@contextmanager
def benchmark_progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """Show on stderr what a benchmark is at; a failure is said at once."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def told(what: str, done: int, total: int, failure: str) -> None:
            bars.update(task, description=escape(what), completed=done, total=total)
            if failure:
                bars.console.print(f"[red]failed[/red] {escape(failure)}", soft_wrap=True)

        yield told


def print_benchmark(found: Benchmark, *, as_json: bool = False) -> None:
    """Print one row per cell, and where everything lies."""
    if as_json:
        print_json([cell_row(cell) for cell in found.cells])
        return
    for dataset in dict.fromkeys(cell.combination.dataset for cell in found.cells):
        rows = [_cell_cells(cell) for cell in found.cells if cell.combination.dataset == dataset]
        names = ("method", "role", "pictures", "failed", *_BENCHMARKED.values(), "flags", "error")
        table(dataset, names, rows, right=names[2:-2])
    print_line(f"Tables, figures and report.html: {found.folder}")


_BENCHMARKED = {
    "dice/dice_pooled": "Dice",
    "matching/precision@0.50": "precision",
    "matching/recall@0.50": "recall",
    "matching/f1@0.50": "F1 at 0.5",
    "panoptic/pq": "PQ",
    "detection/f1": "detection F1",
}


def _cell_cells(cell: Scores) -> tuple[Any, ...]:
    values = (cell.pooled.get(key) for key in _BENCHMARKED)
    shown = (None if value is None or math.isnan(value) else f"{value:.3f}" for value in values)
    errors = dict.fromkeys(image.error for image in cell.failed)
    first = next(iter(errors), cell.error).split("\n")[0] or None
    named = cell.combination
    return named.method, named.role, len(cell.done), len(cell.failed), *shown, "; ".join(cell.flags) or None, first


def print_scores(result: Result, folder: Path) -> None:
    """Print the scores of one picture with their 95 % intervals, and where its files lie."""
    rows = [(name, value, interval) for name, value, interval in _score_rows(result.scores)]
    table(
        f"{result.source.name}, {result.source.mpp} um/px: {_chain(result)}", ("score", "value", "95 % interval"), rows
    )
    files = sorted(path.name for path in folder.iterdir())
    table(f"Files in {folder}", ("file", "kB"), [(f, (folder / f).stat().st_size // 1000) for f in files], right=["kB"])


def print_rescored(outcomes: Sequence[Any], *, as_json: bool = False) -> None:
    """Print the new scores of each folder."""
    if as_json:
        print_json([{"folder": str(one.folder), "scores": one.scores} for one in outcomes])
        return
    names = ("folder", "nuclei", "positive", "% positive", "H-score", "note")
    rows = []
    for one in outcomes:
        counts = one.scores["counts"]
        percent, h = _rounded(one.scores["percent_positive"]), _rounded(one.scores["h_score"])
        rows.append((one.folder, counts["total"], counts["positive"], percent, h, one.note))
    table("Rescored", names, rows, right=names[1:5])


def print_plugins(catalog: Catalog, *, as_json: bool = False) -> None:
    """Print every plugin, and a line on stderr if some did not load."""
    facts = catalog.registry.plugins
    rows: list[dict[str, Any]] = [
        {
            "kind": one.kind,
            "name": one.name,
            "distribution": one.distribution,
            "version": one.version,
            "api": one.api,
            "licence": facts[one.name].licence if one.name in facts else None,
            "summary": facts[one.name].summary if one.name in facts else _first_line(one.cls),
        }
        for one in catalog.found
    ]
    if as_json:
        print_json({"plugins": rows, "problems": [_problem(one) for one in catalog.problems]})
        return
    names = ("kind", "name", "distribution", "version", "licence", "summary")
    table("Plugins", names, [[row[name] for name in names] for row in rows])
    if catalog.problems:
        message = f"{len(catalog.problems)} could not be loaded. Why: stainbridge plugins doctor"
        Console(stderr=True).print(message, style="yellow")


def print_problems(problems: Sequence[Problem]) -> None:
    """Print what went wrong with each plugin, with the traceback where there is one."""
    if not problems:
        print_line("Every installed plugin loaded.")
    for one in problems:
        print_line(f"{one.failure}: entry point {one.entry_point!r} of {one.distribution}\n  {one.message}")
        if one.traceback:
            print_line("    " + one.traceback.rstrip().replace("\n", "\n    "))


def print_checks(reports: Sequence[Any], *, as_json: bool = False) -> None:
    """Print the outcome of each conformance check."""
    if as_json:
        print_json([asdict(report) for report in reports])
        return
    table("Conformance", ("check", "outcome", "message"), [(r.name, r.outcome, r.message) for r in reports])


def print_models(registry: Registry, *, as_json: bool = False) -> None:
    """Print every model of a registry."""
    if as_json:
        print_json({name: model.model_dump() for name, model in registry.models.items()})
        return
    rows = [
        (
            name,
            model.summary,
            model.licence,
            "yes" if model.commercial else "no",
            ", ".join(model.training) or None,
            f"{sum(weight.size for weight in model.weights) / 1e6:.1f}" if model.weights else None,
        )
        for name, model in sorted(registry.models.items())
    ]
    names = ("model", "summary", "licence", "commercial use", "trained on", "MB")
    table("Models", names, rows, right=["MB"])
    noted = {name: model.note for name, model in sorted(registry.models.items()) if model.note}
    for note in dict.fromkeys(noted.values()):
        print_line(f"{', '.join(name for name, its in noted.items() if its == note)}: {note}")


def print_line(text: str) -> None:
    """Print text on stdout as it is."""
    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def _chain(result: Result) -> str:
    """Name what made a result: translator, segmenter, classifier."""
    plugins = result.provenance["plugins"]
    made = (plugins[kind] for kind in ("translator", "segmenter", "classifier"))
    return " -> ".join(one["model"] or one["name"] for one in made if one)


def _problem(one: Problem) -> dict[str, Any]:
    return {key: value for key, value in asdict(one).items() if key != "traceback"}


def _first_line(cls: type[Any]) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]


def _score_rows(scores: Mapping[str, Any]) -> Iterator[tuple[str, str | None, str | None]]:
    intervals = scores.get("intervals") or {}
    for label, path in _SHOWN:
        value, interval = _at(scores, path), _at(intervals, path)
        span = None if not interval or None in interval else f"{_rounded(interval[0])} to {_rounded(interval[1])}"
        yield label, _rounded(value), span


_SHOWN = (
    ("nuclei", ("counts", "total")),
    ("positive", ("counts", "positive")),
    ("negative", ("counts", "negative")),
    ("percent positive (Ki-67 index of a Ki-67 stain)", ("percent_positive",)),
    ("H-score (0 to 300)", ("h_score",)),
    ("Allred total (0 to 8)", ("allred", "total")),
    ("nuclei per mm2", ("density_per_mm2", "total")),
    ("positive per mm2", ("density_per_mm2", "positive")),
    ("area, mm2", ("area_mm2",)),
)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _rounded(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
