"""Detections held against true points, region by region. These are not the numbers of any challenge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stainbridge.datasets.columns import read_subsets
from stainbridge.errors import ConfigError, DataCorrupt, nearest
from stainbridge.points import matched_points

from .table import Detections, read_points

if TYPE_CHECKING:
    import pandas

NOTICE = "not the challenge's numbers; not comparable with the paper's Table 2"

ALL = "all"


@dataclass(frozen=True)
class PointCounts:
    """Counts over the regions of a subset.

    Parameters
    ----------
    name : of the subset or the region
    regions : how many
    tp, fp, fn : pairs, found points without a partner, true points without one
    """

    name: str
    regions: int
    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float:
        """Share of what was found; NaN where nothing was."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of what is there; NaN where nothing is."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN where nothing is there and nothing was found."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def to_dict(self) -> dict[str, Any]:
        """Return counts and ratios."""
        return {**asdict(self), "precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass(frozen=True)
class PointScores:
    """An evaluation of detections.

    Parameters
    ----------
    subsets : "all" first, then by name, where there are subsets
    regions : one each
    radius_um, mpp, greedy : how points were matched
    notice : what these numbers are not
    """

    subsets: tuple[PointCounts, ...]
    regions: tuple[PointCounts, ...]
    radius_um: float
    mpp: float
    greedy: bool
    notice: str = NOTICE

    def to_pandas(self) -> pandas.DataFrame:
        """Return one row per subset; the notice is in ``attrs``."""
        import pandas

        frame = pandas.DataFrame([one.to_dict() for one in self.subsets])
        frame.attrs["notice"] = self.notice
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN as None."""
        how = {"notice": self.notice, "radius_um": self.radius_um, "mpp": self.mpp, "greedy": self.greedy}
        return how | {key: [_plain(one) for one in getattr(self, key)] for key in ("subsets", "regions")}


def score_points(
    truth: str | Path | Detections,
    found: str | Path | Detections,
    *,
    radius_um: float = 4.0,
    mpp: float = 0.25,
    subsets: str | Path | None = None,
    greedy: bool = False,
) -> PointScores:
    """Match points one to one within a radius in each region, and pool the counts.

    Parameters
    ----------
    truth : a CSV roi,x,y; it names every region, those without cells by a row without x and y
    found : a CSV roi,x,y; a region that it does not name counts as one without detections
    radius_um : largest distance of a pair in micrometres, the border included
    mpp : micrometres per pixel of the coordinates
    subsets : a CSV roi,subset
    greedy : take the nearest pair first instead of the most pairs

    Raises
    ------
    ConfigError
        If `radius_um` or `mpp` is not a positive number.
    DataUnavailable, DataCorrupt
        If a file is missing or wrong, or `found` names a region that `truth` does not.
    """
    for name, value in (("radius_um", radius_um), ("mpp", mpp)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} = {value}: must be a positive number of micrometres.")
    true, seen = (one if isinstance(one, Detections) else read_points(one) for one in (truth, found))
    _check_regions(true, seen)
    regions = [_counted(roi, true, seen, radius_um / mpp, greedy) for roi in sorted(true.points)]
    belongs = read_subsets(subsets, "roi", [one.name for one in regions]) if subsets is not None else {}
    return PointScores(_pooled(regions, belongs), tuple(regions), radius_um, mpp, greedy)


def _counted(roi: str, truth: Detections, found: Detections, radius_px: float, greedy: bool) -> PointCounts:
    true, seen = truth.points[roi][:, :2], found.points.get(roi, np.zeros((0, 3)))[:, :2]
    pairs = len(matched_points(true, seen, radius_px, greedy=greedy))
    return PointCounts(roi, 1, pairs, len(seen) - pairs, len(true) - pairs)


def _pooled(regions: Sequence[PointCounts], belongs: Mapping[str, str]) -> tuple[PointCounts, ...]:
    named = {ALL: list(regions)}
    for subset in sorted(set(belongs.values())):
        named[subset] = [one for one in regions if belongs[one.name] == subset]
    return tuple(
        PointCounts(name, len(of), sum(one.tp for one in of), sum(one.fp for one in of), sum(one.fn for one in of))
        for name, of in named.items()
    )


def _check_regions(truth: Detections, found: Detections) -> None:
    if not truth.points:
        raise DataCorrupt("The truth names no region, so there is nothing to score.")
    unknown = sorted(found.points.keys() - truth.points.keys())
    if unknown:
        raise DataCorrupt(
            f"{len(unknown)} regions have detections and no truth, such as {unknown[0]!r}."
            f"{nearest(unknown[0], truth.points)}\n"
            f"A region without true cells is a row of the truth with nothing after its name: {unknown[0]},,"
        )


def _plain(one: PointCounts) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value for key, value in one.to_dict().items()
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
