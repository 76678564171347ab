"""One static page of a benchmark: report.html, which needs nothing but the figures beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stainbridge.errors import MissingExtra
from stainbridge.scores import Benchmark, Difference, ImageScore, Scores

from .figures import KINDS
from .grid import Cell, Table
from .tables import cells_of, first_line, slugs, tables, write_text

MAX_ROWS = 5000
"""Rows of the table of pictures; a browser gets slow beyond. The rest is in images.csv."""

_PICTURE_VALUES = {"dice/dice": "Dice", "matching/f1@0.50": "F1 at IoU 0.5", "detection/f1": "F1 of detection"}


@dataclass(frozen=True)
class _Section:
    """What the page says of one data set."""

    dataset: str
    anchor: str
    tables: tuple[Table, ...]
    figures: tuple[tuple[str, str], ...]
    differences: tuple[tuple[Difference, Cell], ...]
    card: tuple[tuple[str, str], ...]


def write_page(benchmark: Benchmark, folder: Path, *, figures: str = "figures") -> Path:
    """Write FOLDER/report.html and return its path.

    Parameters
    ----------
    figures : folder below `folder` that holds what `write_figures` wrote; figures that are not there are left out

    Raises
    ------
    MissingExtra
        If jinja2 is not installed.
    WriteFailed
        If the page cannot be written; it is whole or not there.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtra.of("the report", "jinja2", "report") from error

    folder.mkdir(parents=True, exist_ok=True)
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.html").render(_content(benchmark, folder, figures))
    return write_text(folder / "report.html", text)


def _content(benchmark: Benchmark, folder: Path, figures: str) -> dict[str, Any]:
    rows = [(cell, image) for cell in benchmark.cells for image in cell.images]
    values = {key: name for key, name in _PICTURE_VALUES.items() if any(key in image.values for _, image in rows)}
    heads = [("Data set", False), ("Method", False), ("Picture", False), ("Subset", False), ("Status", False)]
    heads += [(name, True) for name in ("Nuclei", *values.values(), "Seconds", "Peak MB")]
    return {
        "benchmark": benchmark,
        "summary": _summary(benchmark),
        "headlines": [text for dataset in slugs(benchmark) for text in _headline(benchmark, dataset)],
        "flags": _flags(benchmark),
        "sections": _sections(benchmark, folder, figures),
        "failures": list(_failures(benchmark)),
        "heads": heads,
        "pictures": [_picture(cell, image, values) for cell, image in rows[:MAX_ROWS]],
        "left_out": max(len(rows) - MAX_ROWS, 0),
        "made": _made(benchmark.cells),
        "details": [(_named(cell), _json(cell.facts)) for cell in benchmark.cells if cell.facts],
        "groups": _groups,
    }


def _groups(table: Table) -> list[tuple[str, int]]:
    """Return the headings over groups of columns with their widths."""
    return [(group, len(list(members))) for group, members in groupby(table.columns, key=lambda one: one.group)]


def _summary(benchmark: Benchmark) -> list[tuple[str, int]]:
    cells = benchmark.cells
    pictures = {(cell.combination.dataset, image.picture) for cell in cells for image in cell.images}
    return [
        ("Data sets", len(slugs(benchmark))),
        ("Pictures", len(pictures)),
        ("Methods", len({cell.combination.method for cell in cells if cell.combination.role == "method"})),
        ("Controls", len({cell.combination.method for cell in cells if cell.combination.role == "control"})),
        ("Combinations failed", sum(bool(cell.error) for cell in cells)),
        ("Predictions failed", sum(len(cell.failed) for cell in cells)),
    ]


def _headline(benchmark: Benchmark, dataset: str) -> Iterator[str]:
    """Say which method is best in the first table, and which cannot be told from it."""
    for table in tables(benchmark, dataset):
        wanted = next(i for i, one in enumerate(table.columns) if one.key in ("matching/f1@0.50", "detection/f1"))
        marked = [(row.cells[0].text, row.cells[wanted]) for row in table.rows]
        best = [f"{name} ({cell.text} {cell.interval_text})" for name, cell in marked if cell.mark == "best"]
        tied = [name for name, cell in marked if cell.mark == "tied"]
        if best:
            also = f" Not to be told from it: {', '.join(tied)}." if tied else ""
            if not any(
                (one.dataset, one.value) == (dataset, table.columns[wanted].key) for one in benchmark.differences
            ):
                also = " It was not compared with the others picture by picture."
            yield f"{table.title}. Highest F1: {', '.join(best)}.{also}"


def _flags(benchmark: Benchmark) -> list[tuple[str, list[str]]]:
    """Return each flag with the methods that carry it."""
    found: dict[str, dict[str, None]] = {}
    for cell in benchmark.cells:
        for flag in cell.flags:
            found.setdefault(flag, {})[cell.combination.method] = None
    return [(flag, list(methods)) for flag, methods in found.items()]


def _sections(benchmark: Benchmark, folder: Path, figures: str) -> list[_Section]:
    sections = []
    for number, (dataset, slug) in enumerate(slugs(benchmark).items(), 1):
        names = {f"{figures}/{kind}-{slug}.png": caption for kind, caption in KINDS.items()}
        card: Mapping[str, Any] = next(
            (one for cell in cells_of(benchmark, dataset) if (one := cell.facts.get("data"))), {}
        )
        sections.append(
            _Section(
                dataset,
                f"data-{number}",
                tables(benchmark, dataset),
                tuple((quote(name), caption) for name, caption in names.items() if (folder / name).is_file()),
                tuple((one, _difference(one)) for one in benchmark.differences if one.dataset == dataset),
                tuple(flattened(card)),
            )
        )
    return sections


def _difference(one: Difference) -> Cell:
    return Cell(one.difference, (one.low, one.high), "" if one.low <= 0 <= one.high else "best")


def _failures(benchmark: Benchmark) -> Iterator[dict[str, str]]:
    for cell in benchmark.cells:
        named = {"dataset": cell.combination.dataset, "method": cell.combination.method}
        if cell.error:
            yield {**named, "picture": "the whole combination", "error": cell.error}
        for image in cell.failed:
            yield {**named, "picture": image.picture, "error": image.error}


def _picture(cell: Scores, image: ImageScore, values: Mapping[str, str]) -> list[Cell]:
    status = image.status if image.status == "done" else f"{image.status}: {first_line(image.error)}"
    named = (cell.combination.dataset, cell.combination.method, image.picture, image.subset, status)
    seconds = sum(image.seconds.values()) if image.seconds else None
    return [
        *map(Cell, named),
        Cell(image.nuclei),
        *(Cell(image.values.get(key)) for key in values),
        Cell(seconds, digits=1),
        Cell(image.peak_mb, digits=0),
    ]


def _made(cells: Sequence[Scores]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return software and device, once where all combinations agree, else each with the number of combinations."""
    seen: dict[str, list[Scores]] = {}
    for cell in cells:
        shared = {key: cell.facts[key] for key in ("software", "device") if key in cell.facts}
        if shared:
            seen.setdefault(_json(shared), []).append(cell)
    titles = ("Software and device", "Software and device of {} combinations")
    return [
        (titles[len(seen) > 1].format(len(members)), list(flattened(json.loads(text))))
        for text, members in seen.items()
    ]


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) of every plain value in nested mappings; a list is one text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flattened(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value))
    elif value is not None:
        yield name, str(value)


def _named(cell: Scores) -> str:
    return f"{cell.combination.dataset}: {cell.combination.method}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)
