"""What every figure shares: a canvas that leaves the user's matplotlib alone, colours, files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stainbridge.errors import MissingExtra
from stainbridge.io.atomic import atomic_write
from stainbridge.scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Dash: TypeAlias = str | tuple[int, tuple[float, ...]]

DPI = 200
"""Dots per inch of a PNG."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A3E9D", "#000000")
"""Told apart with any colour vision: Okabe M, Ito K. Color Universal Design, 2008; its yellow is replaced, being pale on white."""

GREY = "#8A8A8A"
"""Of controls."""

DASHES: tuple[Dash, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.5)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


@dataclass(frozen=True)
class Style:
    """How a method is drawn."""

    colour: str
    dash: Dash
    marker: str


def styles(cells: Sequence[Scores]) -> dict[str, Style]:
    """Return a style by method: the segmenter is the colour, what it is combined with the dash and the marker.

    Controls are grey. Up to 8 segmenters with 9 combinations each, no two methods look alike.
    """
    methods = [cell.combination for cell in cells if cell.combination.role == "method"]
    controls = [cell.combination for cell in cells if cell.combination.role == "control"]
    segmenters = list(dict.fromkeys(one.segmenter for one in methods))
    ways = list(dict.fromkeys((one.translator, one.classifier) for one in methods))
    made = {one.method: Style(GREY, DASHES[i % 4], MARKERS[-1 - i % 9]) for i, one in enumerate(controls)}
    for one in methods:
        s, w = segmenters.index(one.segmenter), ways.index((one.translator, one.classifier))
        made[one.method] = Style(COLOURS[s % 8], DASHES[w % 4], MARKERS[(w + s // 8) % 9])
    return made


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty figure on an Agg canvas of its own, without pyplot.

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra.of("the report", "matplotlib", "report") from error

    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write STEM.png and STEM.pdf; the same figure gives the same bytes. Return both paths.

    Raises
    ------
    WriteFailed
        If a file cannot be written; each file is whole or not there.
    """
    _plain_text(figure)
    # Neither the time nor the version of matplotlib, so that files can be compared.
    without: Mapping[str, Mapping[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    paths = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.pdf")
    for path, (kind, metadata) in zip(paths, without.items(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=dict(metadata))
        # Arranged once: with many panels that takes longer than the drawing.
        figure.set_layout_engine("none")
    return paths


def wrapped(name: str, width: int) -> str:
    """Break a method's name into lines of about `width` letters."""
    return "\n".join(textwrap.wrap(name, width, break_on_hyphens=False)) or name


def _plain_text(figure: Figure) -> None:
    """Have names shown letter by letter: a $ starts no formula, and what the font lacks becomes a box, not a warning."""
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.text import Text

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    for text in figure.findobj(Text):
        text.set_fontfamily("DejaVu Sans")
        text.set_parse_math(False)
        text.set_text("".join(one if one == "\n" or ord(one) in known else "\u25a1" for one in text.get_text()))
