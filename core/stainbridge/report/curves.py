"""Figures of values: accuracy against IoU (the paper's Figure 3), and intervals with paired differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stainbridge.errors import ConfigError, nearest
from stainbridge.scores import Benchmark, Difference, Scores

from .drawing import GREY, Style, new_figure, styles, wrapped
from .tables import cells_of, compare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IOU_PCT = tuple(range(50, 101, 5))
"""Thresholds of Figure 3 in hundredths."""

F1 = "matching/f1@0.50"

_NAME_WIDTH = 44


def draw_curves(benchmark: Benchmark, dataset: str, *, bands: bool | None = None) -> Figure:
    """Draw accuracy against the IoU threshold, 0.50 to 1.00, a line per method; controls are grey.

    The legend lists the methods from the highest to the lowest accuracy at 0.50, as the lines begin.

    Parameters
    ----------
    bands : shade the 95 % intervals; None for where there are at most five methods
    """
    cells = cells_of(benchmark, dataset)
    drawn = sorted((cell for cell in cells if _curve(cell)), key=_rank)
    look = styles(cells)
    methods = sum(cell.combination.role == "method" for cell in drawn)
    figure = new_figure(9.5, max(4.6, 1.2 + 0.24 * sum(_lines(cell) for cell in drawn)))
    axes = figure.subplots()
    for cell in drawn:
        _draw_curve(axes, cell, look[cell.combination.method], bands=methods <= 5 if bands is None else bands)
    axes.set(xlim=(0.49, 1.01), ylim=(-0.02, 1.02), xticks=[pct / 100 for pct in IOU_PCT[::2]])
    axes.set_xlabel("IoU threshold", fontsize=10)
    axes.set_ylabel("Accuracy, TP / (TP + FP + FN)", fontsize=10)
    axes.set_title(f"Accuracy against IoU: {dataset}", fontsize=11, loc="left")
    _tidy(axes)
    _legend(figure, drawn, look)
    return figure


def draw_intervals(
    benchmark: Benchmark, dataset: str, *, value: str = F1, title: str = "F1 at IoU 0.5", reference: str | None = None
) -> Figure:
    """Draw a value of each method with its 95 % interval, and its paired difference from a reference method if there is any.

    Parameters
    ----------
    value : "METRIC/KEY"
    reference : a method as `Combination.method` names it; None for the one with the most paired comparisons

    Raises
    ------
    ConfigError
        If `reference` is no method of this data set.
    """
    cells = sorted(
        (cell for cell in cells_of(benchmark, dataset) if not math.isnan(cell.pooled.get(value, math.nan))),
        key=lambda cell: (cell.combination.role == "control", -cell.pooled[value]),
    )
    base = _reference(benchmark, dataset, value, cells, reference)
    names = [wrapped(cell.combination.method, _NAME_WIDTH) for cell in cells]
    figure = new_figure(10, 1.5 + 0.3 * max(len(names), sum(name.count("\n") + 1 for name in names), 2))
    left, *right = figure.subplots(1, 2 if base else 1, sharey=True, squeeze=False)[0]
    look = styles(cells_of(benchmark, dataset))
    colours = [look[cell.combination.method].colour for cell in cells]
    for y, (cell, colour) in enumerate(zip(cells, colours, strict=True)):
        _bar(left, y, cell.pooled[value], cell.intervals.get(value), colour)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_ylim(max(len(names), 1) - 0.5, -0.5)
    left.set_xlabel(f"{title} [95 % interval]", fontsize=9)
    figure.suptitle(f"{title}: {dataset}", fontsize=11, x=0.01, ha="left")
    if base:
        _draw_differences(right[0], [compare(benchmark, cell, base, value) for cell in cells], colours)
        _name_reference(right[0], cells.index(base), base.combination.method)
    for axes in (left, *right):
        _tidy(axes)
    return figure


def _curve(cell: Scores) -> list[tuple[float, float]]:
    """Return (IoU, accuracy) where there is a value."""
    found = ((pct / 100, cell.pooled.get(_key(pct), math.nan)) for pct in IOU_PCT)
    return [(iou, value) for iou, value in found if not math.isnan(value)]


def _key(pct: int) -> str:
    return f"matching/accuracy@{pct / 100:.2f}"


def _rank(cell: Scores) -> tuple[bool, float]:
    return cell.combination.role == "control", -_curve(cell)[0][1]


def _lines(cell: Scores) -> int:
    return wrapped(cell.combination.method, _NAME_WIDTH).count("\n") + 1


def _draw_curve(axes: Axes, cell: Scores, style: Style, *, bands: bool) -> None:
    iou, accuracy = zip(*_curve(cell), strict=True)
    axes.plot(iou, accuracy, **_look(style))
    known = [(pct / 100, *cell.intervals[_key(pct)]) for pct in IOU_PCT if _key(pct) in cell.intervals]
    if bands and known and cell.combination.role == "method":
        at, low, high = zip(*known, strict=True)
        axes.fill_between(at, low, high, color=style.colour, alpha=0.13, linewidth=0)


def _look(style: Style) -> dict[str, Any]:
    return {
        "color": style.colour,
        "linestyle": style.dash,
        "marker": style.marker,
        "markersize": 4.5,
        "linewidth": 1.0 if style.colour == GREY else 1.6,
    }


def _legend(figure: Figure, drawn: Sequence[Scores], look: dict[str, Style]) -> None:
    from matplotlib.lines import Line2D

    if not drawn:
        figure.axes[0].text(0.5, 0.5, "no method has values", ha="center", transform=figure.axes[0].transAxes)
        return
    handles = [Line2D([], [], **_look(look[cell.combination.method])) for cell in drawn]
    # A blank before the name: matplotlib leaves out labels that begin with an underscore.
    labels = [f" {_curve(cell)[0][1]:.3f}  {wrapped(cell.combination.method, _NAME_WIDTH)}" for cell in drawn]
    figure.legend(
        handles,
        labels,
        loc="outside right upper",
        fontsize=8,
        handlelength=4.2,
        frameon=False,
        title="accuracy at 0.50, method",
        title_fontsize=8,
        alignment="left",
    )


def _bar(
    axes: Axes, y: int, middle: float, interval: tuple[float, float] | None, colour: str, *, sure: bool = True
) -> None:
    if interval and not any(map(math.isnan, interval)):
        axes.plot(interval, (y, y), color=colour, linewidth=1.8, solid_capstyle="butt")
    axes.plot([middle], [y], marker="o", markersize=6, color=colour, markerfacecolor=colour if sure else "white")


def _draw_differences(axes: Axes, found: Sequence[Difference | None], colours: Sequence[str]) -> None:
    axes.axvline(0, color="#333333", linewidth=1)
    for y, (one, colour) in enumerate(zip(found, colours, strict=True)):
        if one:
            _bar(axes, y, one.difference, (one.low, one.high), colour, sure=not one.low <= 0 <= one.high)


def _name_reference(axes: Axes, y: int, name: str) -> None:
    axes.annotate("reference", (0, y), (5, 0), textcoords="offset points", fontsize=8, color="#333333", va="center")
    axes.set_xlabel(
        f"Paired difference from {wrapped(name, _NAME_WIDTH)}\nfilled: the interval leaves out 0", fontsize=9
    )


def _reference(
    benchmark: Benchmark, dataset: str, value: str, cells: Sequence[Scores], asked: str | None
) -> Scores | None:
    """Return the cell that the others are compared with."""
    if asked is None:
        of_value = [one for one in benchmark.differences if (one.dataset, one.value) == (dataset, value)]
        asked = _most_compared(of_value)
    known = {cell.combination.method: cell for cell in cells}
    if asked is not None and asked not in known:
        raise ConfigError(
            f"{asked!r} is no method with {value!r} on {dataset!r}.{nearest(asked, known)}\n"
            f"Name one of: {', '.join(known) or 'none has this value'}."
        )
    return known[asked] if asked is not None else None


def _most_compared(differences: Sequence[Difference]) -> str | None:
    # On equal counts the second of a pair wins: what a suite writes "minus" before is its reference.
    seen = Counter(name for one in differences for name in (one.b, one.a))
    return max(seen, key=lambda name: seen[name]) if seen else None


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
