"""Formats in which challenges take detections, each a small class behind one interface.

The true format of LYON19 is on its site only; `Template` takes what is written there. A template file says, for example::

    file = "{roi}.csv"           # one file for each region; without {roi} one file for all
    header = "x,y,score"
    line = "{x:.2f},{y:.2f},{score:.4f}"
    units = "px"                 # or "mm": then x and y are in millimetres
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Formatter
from typing import Literal

from pydantic import ValidationError

from stainbridge.cards import Facts, Filled
from stainbridge.config import explain, read_toml
from stainbridge.errors import ConfigError, DataCorrupt, ScaleUnknown, nearest
from stainbridge.io import atomic_write

from .table import Detections, write_neutral

_FIELDS = ("roi", "index", "x", "y", "score")


class Format(ABC):
    """A way to write detections."""

    @abstractmethod
    def write(self, detections: Detections, out: Path) -> list[Path]:
        """Write below the folder `out` and return the files; each appears whole or not at all."""


class Neutral(Format):
    """``detections.csv`` with roi, x, y, score: see `table`."""

    def write(self, detections: Detections, out: Path) -> list[Path]:
        """Write one file."""
        return [write_neutral(detections, out / "detections.csv")]


class PointsJson(Format):
    """grand-challenge's "Multiple points", as the MONKEY challenge takes them: millimetres, one folder for each region.

    z is 0: a region is a plane.
    """

    def write(self, detections: Detections, out: Path) -> list[Path]:
        """Write ``ROI/detected-lymphocytes.json`` for each region."""
        return [
            _write(out / _as_file_name(roi) / "detected-lymphocytes.json", self._document(detections, roi))
            for roi in detections.points
        ]

    def _document(self, detections: Detections, roi: str) -> str:
        to_mm = _mm_per_px(detections, roi)
        points = [
            {"name": f"Point {index}", "point": [x * to_mm, y * to_mm, 0.0], "probability": score}
            for index, (x, y, score) in enumerate(detections.points[roi].tolist())
        ]
        version = {"major": 1, "minor": 0}
        return json.dumps(
            {"name": "lymphocytes", "type": "Multiple points", "points": points, "version": version}, indent=1
        )


class TemplateTable(Facts):
    """What a template file says.

    Parameters
    ----------
    file : name of the file; with ``{roi}`` there is one for each region
    header, footer : lines before and after, empty for none
    line : one detection; fields roi, index (from 0, in its file), x, y and score, with Python's format after a colon
    units : of x and y
    """

    file: Filled = "detections.csv"
    header: str = ""
    line: Filled
    footer: str = ""
    units: Literal["px", "mm"] = "px"


class Template(Format):
    """Lines by a pattern that the user takes from the challenge's page.

    Raises
    ------
    ConfigError
        If the pattern has a field that does not exist or a format that does not fit.
    """

    def __init__(self, table: TemplateTable) -> None:
        self.table = table
        _check_fields("line", table.line, _FIELDS)
        _check_fields("file", table.file, ("roi",))
        try:
            table.line.format(roi="roi", index=0, x=0.0, y=0.0, score=0.0)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise ConfigError(f"line = {table.line!r} cannot be filled in: {error}.") from None

    @classmethod
    def load(cls, path: str | Path) -> Template:
        """Read a TOML file with the keys of `TemplateTable`; raises ConfigError."""
        values = read_toml(Path(path), ConfigError)
        try:
            return cls(TemplateTable(**values))
        except ValidationError as error:
            raise explain(error, TemplateTable, str(path)) from None

    def write(self, detections: Detections, out: Path) -> list[Path]:
        """Write one file for all regions, or one for each."""
        grouped = (
            {roi: [roi] for roi in detections.points} if "{roi}" in self.table.file else {"": [*detections.points]}
        )
        return [
            _write(out / self.table.file.format(roi=_as_file_name(roi)), self._text(detections, rois))
            for roi, rois in grouped.items()
        ]

    def _text(self, detections: Detections, rois: list[str]) -> str:
        rows = [(roi, row) for roi in rois for row in detections.points[roi].tolist()]
        scale = {roi: 1.0 if self.table.units == "px" else _mm_per_px(detections, roi) for roi in rois}
        lines = [
            self.table.line.format(roi=roi, index=index, x=x * scale[roi], y=y * scale[roi], score=score)
            for index, (roi, (x, y, score)) in enumerate(rows)
        ]
        around = [[one] if one else [] for one in (self.table.header, self.table.footer)]
        return "\n".join([*around[0], *lines, *around[1], ""])


class Lyon19Template(Template):
    """The format of the LYON19 challenge, which only its own page states: fill in a template from there."""


FORMATS: Mapping[str, Callable[[Path | None], Format]] = {
    "csv": lambda template: Neutral(),
    "points-json": lambda template: PointsJson(),
    "template": lambda template: _loaded(Template, template),
    "lyon19": lambda template: _loaded(Lyon19Template, template),
}
"""Formats by name; each is called with the path of the user's template, which only some need."""


def format_named(name: str, template: str | Path | None = None) -> Format:
    """Return a format.

    Raises
    ------
    ConfigError
        If there is none of this name, or it needs a template.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"No format of detections is named {name!r}.{nearest(name, FORMATS)} Known: {', '.join(FORMATS)}."
        )
    return FORMATS[name](None if template is None else Path(template))


def _loaded(kind: type[Template], template: Path | None) -> Template:
    if template is None:
        raise ConfigError(
            f"{kind.__name__} needs a template file: the format is stated on the challenge's page only.\n"
            'Pass --template FILE.toml with file, header, line and units, such as line = "{x:.2f},{y:.2f},{score:.4f}".'
        )
    return kind.load(template)


def _check_fields(key: str, pattern: str, known: tuple[str, ...]) -> None:
    try:
        fields = [name for _, name, _, _ in Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise ConfigError(f"{key} = {pattern!r} is no pattern: {error}.") from None
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"{key} = {pattern!r} has the field {name!r}.{nearest(name, known)} Known: {', '.join(known)}."
            )


def _mm_per_px(detections: Detections, roi: str) -> float:
    if roi not in detections.mpp:
        raise ScaleUnknown(
            f"{roi!r} has no pixel size; millimetres need one.\n"
            "Export from results, which have it, or give Detections(points, mpp={...})."
        )
    return detections.mpp[roi] / 1000


def _as_file_name(roi: str) -> str:
    """Return a region's name, which has to be one of a file."""
    if roi.startswith(".") or any(sign in roi for sign in "/\\:\0"):
        raise DataCorrupt(
            f"The region {roi!r} cannot name a file.\nRename its picture, or write one file for all regions."
        )
    return roi


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
