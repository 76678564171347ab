"""Detected cells as points, and the neutral CSV ``roi,x,y,score``.

x and y are in pixels from the top left; the centre of the first pixel is (0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stainbridge.datasets.columns import read_columns
from stainbridge.errors import DataCorrupt, NoPictures
from stainbridge.io import atomic_write, load_nuclei

if TYPE_CHECKING:
    import pandas

SUMMARY = "summary.json"
"""What marks a folder that `run` wrote."""


@dataclass(frozen=True)
class Detections:
    """Points by region of interest.

    Parameters
    ----------
    points : by region, float64 (n, 3): x and y in pixels, score; a region without cells has none
    mpp : by region, micrometres per pixel, where it is known
    """

    points: Mapping[str, NDArray[np.float64]]
    mpp: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(points) for points in self.points.values())

    def rows(self) -> Iterator[tuple[str, float, float, float]]:
        """Yield region, x, y and score of each point."""
        for roi, points in self.points.items():
            for x, y, score in points.tolist():
                yield roi, x, y, score

    def to_pandas(self) -> pandas.DataFrame:
        """Return one row per point: roi, x, y, score."""
        import pandas

        return pandas.DataFrame(list(self.rows()), columns=["roi", "x", "y", "score"])


def from_results(folders: Sequence[str | Path], *, negatives: bool = False) -> Detections:
    """Collect the nuclei of folders that `run` wrote: centroids of the outlines, P(positive) as score.

    Parameters
    ----------
    folders : of one picture each, or of a whole run; a region is named like its picture
    negatives : take the negative nuclei too

    Raises
    ------
    NoPictures
        If a folder holds no result.
    DataCorrupt
        If two folders have one name.
    """
    points: dict[str, NDArray[np.float64]] = {}
    mpp: dict[str, float] = {}
    for folder in (one for given in folders for one in _results(Path(given))):
        nuclei, summary = load_nuclei(folder)
        facts = summary["provenance"].get("input", {})
        roi = str(facts.get("name") or folder.resolve().name)
        if roi in points:
            raise DataCorrupt(
                f"Two results are of pictures named {roi!r}, the second in {str(folder)!r}; "
                "the regions of an export need names of their own."
            )
        chosen = np.ones(len(nuclei), bool) if negatives else nuclei.positive
        points[roi] = np.stack([nuclei.x, nuclei.y, nuclei.p_positive], axis=1)[chosen]
        if facts.get("mpp"):
            mpp[roi] = float(facts["mpp"])
    return Detections(points, mpp)


def write_neutral(detections: Detections, path: str | Path) -> Path:
    """Write ``roi,x,y,score``, with the shortest digits that give each number back."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        import csv

        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["roi", "x", "y", "score"])
        writer.writerows((roi, repr(x), repr(y), repr(score)) for roi, x, y, score in detections.rows())
    return path


def read_points(path: str | Path, *, scored: bool = False) -> Detections:
    """Read a CSV with the columns roi, x, y and, where `scored`, score; without it each score is 1.

    A row with a region and nothing else names a region without cells.

    Raises
    ------
    DataUnavailable
        If there is no such file.
    DataCorrupt
        If a column is missing, a number is none, not finite or outside the picture, or a point is there twice.
    """
    columns = ("roi", "x", "y", *(("score",) if scored else ()))
    found: dict[str, list[tuple[float, ...]]] = {}
    seen: dict[tuple[str, float, float], str] = {}
    for row in read_columns(path, columns):
        where = f"{str(path)!r}, line {row['line']}"
        if not row["roi"]:
            raise DataCorrupt(f"{where}: the region has no name.")
        points = found.setdefault(row["roi"], [])
        if not any(row[column] for column in columns[1:]):
            continue
        x, y = (_number(row[column], column, where, least=-0.5) for column in ("x", "y"))
        other = seen.setdefault((row["roi"], x, y), row["line"])
        if other != row["line"]:
            raise DataCorrupt(f"{where}: the point ({x:g}, {y:g}) of {row['roi']!r} is in line {other} too.")
        points.append((x, y, _number(row["score"], "score", where) if scored else 1.0))
    return Detections({roi: np.array(points, np.float64).reshape(-1, 3) for roi, points in found.items()})


def _number(text: str, column: str, where: str, least: float = -math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataCorrupt(f"{where}: {column} = {text!r} is not a finite number.")
    if value < least:
        raise DataCorrupt(f"{where}: {column} = {text} lies outside the picture; pixels count from the top left.")
    return value


def _results(folder: Path) -> list[Path]:
    """Return the folder of one picture, or those below the folder of a run."""
    if (folder / SUMMARY).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{SUMMARY}") if not path.parent.name.startswith("."))
    if not found:
        raise NoPictures(
            f"{str(folder)!r} holds no result (no {SUMMARY} in it or in a folder below).\n"
            "Name a folder that `run` wrote."
        )
    return found
