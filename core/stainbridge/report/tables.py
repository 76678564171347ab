"""The paper's two tables from a benchmark, and everything else as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

from stainbridge.io.atomic import atomic_write
from stainbridge.scores import Benchmark, Difference, ImageScore, Scores, cell_row

from .grid import TIED, Cell, Column, Mark, Row, Table
from .published import PublishedRow, PublishedTable, published

TABLE1 = {
    "dice/dice_pooled": "Dice",
    "matching/accuracy@0.50": "Accuracy",
    "matching/precision@0.50": "Precision",
    "matching/recall@0.50": "Recall",
    "matching/f1@0.50": "F1",
}
"""Titles of the columns of the paper's Table 1 by value."""

DETECTION = "detection/f1"
"""The value of the paper's Table 2."""

PAPER = "as published"
"""Heading over the paper's own numbers."""

_NAMED_FAILURES = 3


@dataclass(frozen=True)
class _Asked:
    """A column of values: `value` over the whole data set, or over one `subset` of it."""

    value: str
    title: str
    subset: str = ""

    @property
    def key(self) -> str:
        return f"{self.value} {self.subset}".rstrip()

    def of(self, cell: Scores) -> float:
        values = cell.subsets.get(self.subset, {}) if self.subset else cell.pooled
        return values.get(self.value, math.nan)

    def interval(self, cell: Scores) -> tuple[float, float] | None:
        return None if self.subset else cell.intervals.get(self.value)


@dataclass(frozen=True)
class _Printed:
    """The paper's columns that stand beside: titles by the key of their values."""

    table: PublishedTable
    titles: Mapping[str, str]

    def beside(self, cells: Sequence[Scores]) -> dict[str, str]:
        """Return the columns in which at least one of these cells has a published value."""
        rows = [row for cell in cells if (row := self.table.row_of(cell.combination))]
        return {key: title for key, title in self.titles.items() if any(key in row.values for row in rows)}

    def cells(self, cell: Scores, keys: Iterable[str]) -> list[Cell]:
        row = self.table.row_of(cell.combination) or PublishedRow("", "", "", {})
        return [
            Cell(row.values.get(key), notes=(row.notes[key],) if key in row.notes else (), digits=2) for key in keys
        ]


def table1(benchmark: Benchmark, dataset: str) -> Table:
    """Return Dice, accuracy, precision, recall and F1 at IoU 0.5 of every method on a data set, as the paper's Table 1."""
    asked = [_Asked(value, title) for value, title in TABLE1.items()]
    made = _table(benchmark, dataset, asked, _Printed(published("table1"), TABLE1))
    note = "Dice is that of all pixels together; its mean over pictures is in combinations.csv."
    title = f"Segmentation of nuclei on {dataset}, IoU 0.5"
    return replace(made, name=f"table1-{slugs(benchmark)[dataset]}", title=title, notes=(note, *made.notes))


def table2(benchmark: Benchmark, dataset: str) -> Table:
    """Return F1 of detection of every method on a data set and on its subsets, as the paper's Table 2."""
    subsets = dict.fromkeys(name for cell in cells_of(benchmark, dataset) for name in cell.subsets)
    asked = [_Asked(DETECTION, "All"), *(_Asked(DETECTION, name.capitalize(), name) for name in subsets)]
    paper = published("table2")
    parts = {part: part.capitalize() for row in paper.rows for part in row.values}
    made = _table(benchmark, dataset, asked, _Printed(paper, parts))
    note = "Detection is scored by stainbridge's own evaluator, not by that of a challenge."
    notes = (note, *(["Subsets have no intervals and are not compared."] if subsets else []), *made.notes)
    title = f"Detection of nuclei on {dataset}: F1"
    return replace(made, name=f"table2-{slugs(benchmark)[dataset]}", title=title, notes=notes)


def tables(benchmark: Benchmark, dataset: str) -> tuple[Table, ...]:
    """Return Table 1 and Table 2 of a data set as far as it has values for them; Table 1 where it has none at all."""
    known = {value for cell in cells_of(benchmark, dataset) for value in cell.pooled}
    first = (table1(benchmark, dataset),) if known & TABLE1.keys() or DETECTION not in known else ()
    second = (table2(benchmark, dataset),) if DETECTION in known else ()
    return first + second


def write_tables(benchmark: Benchmark, folder: Path) -> tuple[Path, ...]:
    """Write each table as .md, .csv and .tex; return the paths.

    Raises
    ------
    WriteFailed
        If a file cannot be written; each file is whole or not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in (one for dataset in slugs(benchmark) for one in tables(benchmark, dataset)):
        texts = {"md": table.to_markdown(), "csv": table.to_csv(), "tex": table.to_latex()}
        written += [write_text(folder / f"{table.name}.{suffix}", text) for suffix, text in texts.items()]
    return tuple(written)


def write_records(benchmark: Benchmark, folder: Path) -> tuple[Path, ...]:
    """Write combinations.csv (a row per cell), images.csv (a row per cell and picture) and differences.csv.

    Raises
    ------
    WriteFailed
        If a file cannot be written; each file is whole or not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = [cell_row(cell) for cell in benchmark.cells]
    images = [image_row(cell, image) for cell in benchmark.cells for image in cell.images]
    differences = [asdict(one) for one in benchmark.differences]
    return (
        write_text(folder / "combinations.csv", _csv(cells, first=("dataset", "translator", "segmenter"))),
        write_text(folder / "images.csv", _csv(images, first=("dataset", "method", "picture", "status"))),
        write_text(folder / "differences.csv", _csv(differences, first=[one.name for one in fields(Difference)])),
    )


def image_row(cell: Scores, image: ImageScore) -> dict[str, Any]:
    """Return a picture in a cell as one flat row: names, then seconds by stage, then its values."""
    row = {key: value for key, value in asdict(image).items() if key not in ("values", "seconds")}
    named = {"dataset": cell.combination.dataset, "method": cell.combination.method}
    return named | row | {f"seconds/{stage}": value for stage, value in image.seconds.items()} | dict(image.values)


def cells_of(benchmark: Benchmark, dataset: str) -> tuple[Scores, ...]:
    """Return the cells of a data set in the order of the suite, the controls last."""
    cells = [cell for cell in benchmark.cells if cell.combination.dataset == dataset]
    return tuple(sorted(cells, key=lambda cell: cell.combination.role == "control"))


def slugs(benchmark: Benchmark) -> dict[str, str]:
    """Return a name for files by data set, in the order of the suite; two data sets never share one."""
    found: dict[str, str] = {}
    for dataset in dict.fromkeys(cell.combination.dataset for cell in benchmark.cells):
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", dataset).strip("-.") or "dataset"
        # Some file systems do not tell capitals from small letters.
        taken = {slug.lower() for slug in found.values()}
        names = (base if number == 1 else f"{base}-{number}" for number in count(1))
        found[dataset] = next(name for name in names if name.lower() not in taken)
    return found


def first_line(error: str) -> str:
    """Return what an error says first; the rest of it is advice."""
    return error.strip().split("\n")[0]


def write_text(path: Path, text: str) -> Path:
    """Write text as UTF-8 with plain line ends, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8", newline="\n")
    return path


def _table(benchmark: Benchmark, dataset: str, asked: Sequence[_Asked], printed: _Printed) -> Table:
    """Return the table without a name."""
    cells = cells_of(benchmark, dataset)
    marks = [_marks(benchmark, cells, asks) for asks in asked]
    beside = printed.beside(cells)
    failed = any(cell.failed for cell in cells)
    columns = [Column("method", "Method"), Column("images_done", "Pictures")]
    columns += [Column("images_failed", "Failed")] if failed else []
    columns += [Column(asks.key, asks.title, "this suite" if beside else "", not asks.subset) for asks in asked]
    columns += [Column(f"published {key}", title, PAPER) for key, title in beside.items()]
    rows = []
    for index, cell in enumerate(cells):
        counts = [Cell(len(cell.done)), *([Cell(len(cell.failed))] if failed else [])]
        values = [
            Cell(asks.of(cell), asks.interval(cell), mark[index]) for asks, mark in zip(asked, marks, strict=True)
        ]
        named = Cell(cell.combination.method, notes=_remarks(cell))
        rows.append(Row((named, *counts, *values, *printed.cells(cell, beside)), cell.combination.role == "control"))
    notes = _notes(benchmark, cells, asked) + ([_about(printed.table)] if beside else [])
    return Table("", "", tuple(columns), tuple(rows), tuple(notes))


def _remarks(cell: Scores) -> tuple[str, ...]:
    """Return what a reader must know of a row: its flags, why it failed, and which of its pictures did."""
    remarks = [*cell.flags]
    if cell.error:
        remarks.append(f"Failed: {first_line(cell.error)}")
    if failed := cell.failed:
        named = "; ".join(f"{one.picture}: {first_line(one.error)}" for one in failed[:_NAMED_FAILURES])
        more = f"; and {len(failed) - _NAMED_FAILURES} more" if len(failed) > _NAMED_FAILURES else ""
        remarks.append(f"{len(failed)} of {len(cell.images)} pictures failed and are left out. {named}{more}")
    return tuple(remarks)


def _marks(benchmark: Benchmark, cells: Sequence[Scores], asks: _Asked) -> list[Mark]:
    """Return the mark of each cell; nothing is marked where fewer than two methods have a value."""
    best = _best(cells, asks)
    return [_mark(benchmark, cell, best, asks) for cell in cells]


def _best(cells: Sequence[Scores], asks: _Asked) -> list[Scores]:
    rivals = [cell for cell in cells if cell.combination.role == "method" and not math.isnan(asks.of(cell))]
    top = max(map(asks.of, rivals), default=math.nan)
    return [cell for cell in rivals if asks.of(cell) == top] if len(rivals) > 1 else []


def _mark(benchmark: Benchmark, cell: Scores, best: Sequence[Scores], asks: _Asked) -> Mark:
    if any(cell is one for one in best):
        return "best"
    if asks.subset or cell.combination.role == "control":
        return ""
    compared = [found for one in best if (found := compare(benchmark, cell, one, asks.value))]
    return "tied" if any(found.low <= 0 <= found.high for found in compared) else ""


def compare(benchmark: Benchmark, a: Scores, b: Scores, value: str) -> Difference | None:
    """Return the paired difference of a minus b in a value, whichever way round it was made; None if it was not."""
    dataset = a.combination.dataset
    for one in benchmark.differences:
        if (one.dataset, one.value) != (dataset, value):
            continue
        if (one.a, one.b) == (a.combination.method, b.combination.method):
            return one
        if (one.b, one.a) == (a.combination.method, b.combination.method):
            return replace(one, a=one.b, b=one.a, difference=-one.difference, low=-one.high, high=-one.low)
    return None


def _notes(benchmark: Benchmark, cells: Sequence[Scores], asked: Sequence[_Asked]) -> list[str]:
    notes = ["Values are pooled over pictures. In brackets: 95 % bootstrap intervals over pictures."]
    if not any(_best(cells, asks) for asks in asked):
        return notes
    notes.append(
        f"Bold: the best of the methods; controls do not compete. {TIED}: the 95 % interval of its paired difference "
        "from the best contains 0."
    )
    missing = dict.fromkeys(name for asks in asked for name in _not_compared(benchmark, cells, asks))
    if missing:
        notes.append(f"Not compared with the best of every column, so that no mark says nothing: {', '.join(missing)}.")
    return notes


def _not_compared(benchmark: Benchmark, cells: Sequence[Scores], asks: _Asked) -> list[str]:
    """Return the methods whose difference from the best of a column is not known."""
    best = [] if asks.subset else _best(cells, asks)
    rivals = [cell for cell in cells if cell.combination.role == "method" and not math.isnan(asks.of(cell))]
    return [
        cell.combination.method
        for cell in rivals
        if best
        and not _mark(benchmark, cell, best, asks)
        and not any(compare(benchmark, cell, one, asks.value) for one in best)
    ]


def _about(paper: PublishedTable) -> str:
    return f"As published: {paper.citation} {paper.title}. {paper.dataset}. {paper.not_comparable}"


def _csv(rows: Sequence[Mapping[str, Any]], *, first: Sequence[str]) -> str:
    """Return rows with every column that one of them has; NaN and None are empty."""
    names = list(dict.fromkeys([*first, *(name for row in rows for name in row)]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = [row.get(name) for name in names]
        writer.writerow([None if isinstance(value, float) and math.isnan(value) else value for value in values])
    return out.getvalue()
