"""Every figure of a benchmark, written to a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stainbridge.scores import Benchmark

from .curves import F1, draw_curves, draw_intervals
from .drawing import write_figure
from .panels import Panel, draw_panels
from .tables import cells_of, slugs

KINDS = {
    "figure2": "What each method found (blue), invented (red) and missed (green) at IoU 0.5",
    "figure3": "Accuracy against the IoU threshold",
    "intervals": "F1 at IoU 0.5 with 95 % intervals, and paired differences",
    "detection": "F1 of detection with 95 % intervals, and paired differences",
}
"""Captions by the first part of a figure's file name."""


def write_figures(
    benchmark: Benchmark, folder: Path, panels: Mapping[str, Sequence[Panel]] | None = None
) -> tuple[Path, ...]:
    """Write KIND-DATASET.png and .pdf for each data set: what its values and its panels allow; return the paths.

    Parameters
    ----------
    panels : pictures of Figure 2 by data set

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    WriteFailed
        If a file cannot be written; each file is whole or not there.
    """
    written: list[Path] = []
    for dataset, slug in slugs(benchmark).items():
        values = {value for cell in cells_of(benchmark, dataset) for value in cell.pooled}
        if shown := (panels or {}).get(dataset):
            written += write_figure(draw_panels(shown, title=dataset), folder / f"figure2-{slug}")
        if "matching/accuracy@0.50" in values:
            written += write_figure(draw_curves(benchmark, dataset), folder / f"figure3-{slug}")
        if F1 in values:
            written += write_figure(draw_intervals(benchmark, dataset), folder / f"intervals-{slug}")
        if "detection/f1" in values:
            drawn = draw_intervals(benchmark, dataset, value="detection/f1", title="F1 of detection")
            written += write_figure(drawn, folder / f"detection-{slug}")
    return tuple(written)
