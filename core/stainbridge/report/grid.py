"""A table for people, cells with intervals, marks and footnotes, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

Mark: TypeAlias = Literal["", "best", "tied"]
Value: TypeAlias = float | int | str | None

DASH = "–"
"""What stands for a value that is missing or not defined."""

TIED = "≈"
"""What stands before a value that cannot be told from the best one."""


@dataclass(frozen=True)
class Column:
    """One column.

    Parameters
    ----------
    key : its name in CSV, such as "matching/f1@0.50"
    title : its name for people
    group : a heading over several neighbouring columns, or an empty string
    interval : in CSV, "KEY low" and "KEY high" follow
    """

    key: str
    title: str
    group: str = ""
    interval: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell.

    Parameters
    ----------
    value : a number, text, or None for none; NaN is shown like None
    interval : low and high
    mark : "best" in its column, or "tied" with the best
    notes : footnotes; the same text gets the same number
    digits : decimals of a float
    """

    value: Value = None
    interval: tuple[float, float] | None = None
    mark: Mark = ""
    notes: tuple[str, ...] = ()
    digits: int = 3

    @property
    def text(self) -> str:
        """The value for people, not escaped."""
        if isinstance(self.value, float):
            return DASH if math.isnan(self.value) else f"{self.value:.{self.digits}f}"
        return DASH if self.value is None else str(self.value)

    @property
    def interval_text(self) -> str:
        """The interval for people, or an empty string where there is none."""
        if self.interval is None or any(map(math.isnan, self.interval)):
            return ""
        low, high = (f"{bound:.{self.digits}f}" for bound in self.interval)
        return f"[{low}, {high}]"


@dataclass(frozen=True)
class Row:
    """One row; a control stands below a line, after the methods."""

    cells: tuple[Cell, ...]
    control: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Parameters
    ----------
    name : of its files
    notes : what holds for the whole table
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def footnotes(self) -> tuple[str, ...]:
        """The notes of the cells in reading order, each text once; number 1 is the first."""
        found = (note for row in self.rows for cell in row.cells for note in cell.notes)
        return tuple(dict.fromkeys(found))

    def numbers(self, cell: Cell) -> tuple[int, ...]:
        """Return the numbers of the footnotes of a cell."""
        return tuple(self.footnotes.index(note) + 1 for note in cell.notes)

    def to_markdown(self) -> str:
        """Return GitHub's Markdown: controls after an empty row, notes below."""
        heads = [f"{c.group}: {c.title}" if c.group else c.title for c in self.columns]
        lines = [_piped(map(escape_markdown, heads)), _piped(["---", *["---:"] * (len(heads) - 1)])]
        for control, rows in groupby(self.rows, key=lambda row: row.control):
            if control:
                lines.append(_piped(["*controls*", *[""] * (len(heads) - 1)]))
            lines += [_piped(self._markdown(cell) for cell in row.cells) for row in rows]
        notes = [escape_markdown(note) for note in self.notes]
        numbered = [f"{number}. {escape_markdown(note)}" for number, note in enumerate(self.footnotes, 1)]
        parts = [f"**{escape_markdown(self.title)}**", "\n".join(lines), *notes, "\n".join(numbered)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_csv(self) -> str:
        """Return every number in full, bounds of intervals as columns, the footnotes of a row in its last column."""
        heads = [name for column in self.columns for name in _csv_names(column)]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*heads, "role", "notes"])
        for row in self.rows:
            values = [one for column, cell in zip(self.columns, row.cells, strict=True) for one in _csv(column, cell)]
            notes = "; ".join(dict.fromkeys(note for cell in row.cells for note in cell.notes))
            writer.writerow([*values, "control" if row.control else "method", notes])
        return out.getvalue()

    def to_latex(self) -> str:
        r"""Return a `table` environment for ``\usepackage{booktabs}``; intervals stand below their values."""
        lines = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering\small\setlength{\tabcolsep}{4pt}"]
        lines += [rf"\caption{{{escape_latex(self.title)}}}", rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}"]
        lines += [r"\toprule", *_latex_groups(self.columns)]
        lines += [_joined(escape_latex(column.title) for column in self.columns)]
        for _, rows in groupby(self.rows, key=lambda row: row.control):
            lines += [r"\midrule", *(_joined(self._latex(cell) for cell in row.cells) for row in rows)]
        lines += [r"\bottomrule", r"\end{tabular}"]
        notes = [escape_latex(note) for note in self.notes]
        notes += [
            rf"\textsuperscript{{{number}}} {escape_latex(note)}" for number, note in enumerate(self.footnotes, 1)
        ]
        lines += [rf"\par\smallskip\raggedright\footnotesize {note}" for note in notes]
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def _markdown(self, cell: Cell) -> str:
        text = escape_markdown(cell.text)
        text = _marked(cell, text, bold=lambda inner: f"**{inner}**", tied=TIED)
        text = f"{text} {cell.interval_text}".rstrip()
        numbers = self.numbers(cell)
        return f"{text} <sup>{', '.join(map(str, numbers))}</sup>" if numbers else text

    def _latex(self, cell: Cell) -> str:
        text = _marked(cell, escape_latex(cell.text), bold=lambda inner: rf"\textbf{{{inner}}}", tied=r"$\approx$")
        if numbers := self.numbers(cell):
            text += rf"\textsuperscript{{{','.join(map(str, numbers))}}}"
        # Braces: after a line break, LaTeX takes a bare [ for a length.
        if interval := cell.interval_text:
            text = rf"\shortstack[r]{{{text}\\{{\scriptsize {interval}}}}}"
        return text


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    flat = " ".join(text.split())
    # Underscores and stars inside words too: readers differ in what they take for emphasis.
    return re.sub(r"([\\`*_{}\[\]|$~#])", r"\\\1", flat).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def escape_latex(text: str) -> str:
    """Return text that LaTeX sets as it is, on one line."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


_LATEX = {letter: rf"\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",
    "]": "{]}",
    DASH: "--",
    TIED: r"$\approx$",
    "µ": r"\textmu{}",
}


def _marked(cell: Cell, text: str, *, bold: Callable[[str], str], tied: str) -> str:
    if cell.mark == "best":
        return bold(text)
    return f"{tied} {text}" if cell.mark == "tied" else text


def _piped(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _joined(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_groups(columns: tuple[Column, ...]) -> list[str]:
    """Return the line of headings over groups of columns and the rules under them; nothing where there is no group."""
    spans = [(group, len(list(members))) for group, members in groupby(columns, key=lambda column: column.group)]
    if all(not group for group, _ in spans):
        return []
    heads, rules, first = [], [], 1
    for group, width in spans:
        heads.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [_joined(heads), "".join(rules)]


def _csv_names(column: Column) -> list[str]:
    return [column.key, f"{column.key} low", f"{column.key} high"] if column.interval else [column.key]


def _csv(column: Column, cell: Cell) -> list[Value]:
    values: list[Value] = [cell.value, *(cell.interval or (None, None))] if column.interval else [cell.value]
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values]
