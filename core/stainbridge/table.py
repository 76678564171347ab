"""From stitched labels to the nuclei table: measured and classified on the original IHC, window by window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .interfaces import PositivityClassifier
from .measure import boxes as label_boxes
from .measure import regions, stain_densities
from .records import MEASURED, LabelMap, LabelSource, Nuclei, Source
from .scale import RescaledLabels, rescale
from .scoring import grades
from .stages import classify
from .stitching import Stitcher
from .tiling import Window

VISIT_PX = 1024
"""Side of the squares by which nuclei are visited; what is read is as large as the nuclei in the square need."""


@dataclass(frozen=True)
class Visit:
    """Nuclei that are measured together.

    Parameters
    ----------
    ids : int64 (k,), stitched ids that belong to this visit, all of them whole inside `labels`
    window : where on the grid
    labels : int32 (H, W), every object in the window, renumbered 1..count
    count : number of objects in the window
    local : int64 (k,), the number in `labels` of each of `ids`; 0 where it has no pixel on this grid
    """

    ids: NDArray[np.int64]
    window: Window
    labels: LabelMap
    count: int
    local: NDArray[np.int64]


def tabulate(
    source: Source,
    stitched: Stitcher,
    classifier: PositivityClassifier,
    *,
    grade_cuts: tuple[float, float, float],
    threshold: float,
    p_positive: NDArray[np.float64] | None = None,
) -> tuple[Nuclei, RescaledLabels]:
    """Measure every nucleus on the original IHC, and classify it there unless `p_positive` (n,) is known already.

    Returns the table, and the labels on the picture's grid with the table's numbers. A nucleus without a pixel there, because that
    grid is coarser than the segmenter's, gets neither.
    """
    assert source.mpp is not None
    grid = RescaledLabels(stitched.canvas, source.shape, source.mpp)
    area_px, centre, od, box = _measured(source, grid, stitched)
    p = _probabilities(source, stitched, classifier) if p_positive is None else p_positive
    told = {name: column[area_px > 0] for name, column in stitched.values().items()}
    kept = area_px > 0
    label = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    nuclei = Nuclei(
        label=label[kept],
        y=centre[kept, 0],
        x=centre[kept, 1],
        area_um2=area_px[kept] * source.mpp**2,
        box=box[kept],
        p_positive=p[kept],
        positive=p[kept] >= threshold,
        grade=grades(od[kept, 1], grade_cuts),
        clipped=np.array(stitched.clipped, bool)[kept],
        features={**dict(zip(MEASURED, od[kept].T, strict=True)), **told},
    )
    ids = np.concatenate([np.zeros(1, np.int32), label])
    return nuclei, RescaledLabels(stitched.canvas, source.shape, source.mpp, ids)


def _measured(
    source: Source, grid: LabelSource, stitched: Stitcher
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return area in pixels (n,), centroid (n, 2), optical densities of haematoxylin and DAB (n, 2) and boxes (n, 4)."""
    n = len(stitched)
    area, box = np.zeros(n, np.int64), np.zeros((n, 4), np.int64)
    centre, od = np.zeros((n, 2)), np.zeros((n, 2))
    for visit in visits(grid, stitched, margin_px=0):
        window = visit.window
        densities = stain_densities(source.read(window.y, window.x, window.height, window.width))
        found = regions(visit.labels, densities, count=visit.count)
        seen = visit.local > 0
        rows, local = visit.ids[seen] - 1, visit.local[seen] - 1
        area[rows] = found.area_px[local]
        centre[rows] = np.stack([found.y[local] + window.y, found.x[local] + window.x], axis=1)
        od[rows] = found.means[local]
        box[rows] = label_boxes(visit.labels)[local] + [window.y, window.x, window.y, window.x]
    return area, centre, od, box


def _probabilities(source: Source, stitched: Stitcher, classifier: PositivityClassifier) -> NDArray[np.float64]:
    """Return P(positive) (n,), from the IHC at the classifier's scale."""
    ihc = rescale(source, classifier.wants.mpp)
    grid = RescaledLabels(stitched.canvas, ihc.shape, ihc.mpp)
    p = np.zeros(len(stitched))
    for visit in visits(grid, stitched, margin_px=classifier.wants.halo):
        window = visit.window
        pixels = ihc.read(window.y, window.x, window.height, window.width)
        found = classify(classifier, pixels, visit.labels, visit.count)
        seen = visit.local > 0
        p[visit.ids[seen] - 1] = found[visit.local[seen] - 1]
    return p


def visits(grid: LabelSource, stitched: Stitcher, *, margin_px: int) -> Iterator[Visit]:
    """Visit every nucleus once, with at least `margin_px` of `grid` around it where the picture has that much."""
    boxes = _boxes_on(grid, stitched, margin_px)
    square = ((boxes[:, 0] + boxes[:, 2]) // 2 // VISIT_PX) * (grid.shape[1] // VISIT_PX + 1)
    square += (boxes[:, 1] + boxes[:, 3]) // 2 // VISIT_PX
    order = np.argsort(square, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(square[order])) + 1):
        if len(members):
            yield _visit(grid, members + 1, boxes[members])


def _visit(grid: LabelSource, ids: NDArray[np.int64], boxes: NDArray[np.int64]) -> Visit:
    (y0, x0), (y1, x1) = boxes[:, :2].min(0).tolist(), boxes[:, 2:].max(0).tolist()
    labels = grid.read(y0, x0, y1 - y0, x1 - x0)
    number = np.zeros(max(int(labels.max()), int(ids.max())) + 1, np.int32)
    number[labels] = 1
    number[0] = 0
    count = int(number.sum())
    number = np.where(number > 0, np.cumsum(number), 0).astype(np.int32)
    return Visit(ids, Window(y0, x0, y1 - y0, x1 - x0), number[labels], count, number[ids].astype(np.int64))


def _boxes_on(grid: LabelSource, stitched: Stitcher, margin_px: int) -> NDArray[np.int64]:
    """Return boxes (n, 4) on `grid`, with a margin, cut at the picture's border."""
    boxes = np.array(stitched.boxes, np.float64).reshape(-1, 4)
    own, wanted = stitched.canvas.mpp, grid.mpp
    assert own is not None
    assert wanted is not None
    boxes *= own / wanted
    # One pixel more: nearest neighbour may round outwards.
    boxes += np.array([-1, -1, 1, 1]) * (margin_px + 1)
    height, width = grid.shape
    whole: NDArray[np.int64] = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(np.int64)
    clipped: NDArray[np.int64] = whole.clip((0, 0, 1, 1), (height - 1, width - 1, height, width))
    return clipped
