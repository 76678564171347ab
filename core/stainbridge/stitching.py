"""Stitch label maps of overlapping windows into one, by centroid ownership (see `tiling`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .measure import boxes as label_boxes
from .records import LabelMap, NucleusValues
from .tiling import Canvas, Tile, Window

SAME_NUCLEUS = 0.5
"""Overlap, as a share of the smaller of two objects, above which they are two views of one nucleus."""


@dataclass
class Stitcher:
    """Collects the label maps of tiles, in row-major order, on one canvas.

    An object that touches the inner border of its window may be cut. Its piece is joined with the views that overlap it; if no
    tile owns the object it is kept all the same. Either way it is flagged in `clipped`: no halo, however small, loses a nucleus in
    silence.

    Parameters
    ----------
    canvas : int32 (H, W), zero; receives ids 1..n
    """

    canvas: Canvas
    boxes: list[list[int]] = field(default_factory=list)
    clipped: list[bool] = field(default_factory=list)
    duplicates: int = 0
    _orphans: list[tuple[Window, NDArray[np.bool_], int]] = field(default_factory=list)
    _told: list[NucleusValues] = field(default_factory=list)
    _told_rows: int = 0
    _rows: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.boxes)

    def add(self, labels: LabelMap, tile: Tile, values: NucleusValues | None = None) -> None:
        """Take the objects of int32 (H, W) `labels`, read at `tile.outer`, whose centroid lies in `tile.core`.

        `values` are float64 (n,) by name, for the ids 1..n; each call gives the same names.
        """
        boxes = label_boxes(labels)
        row = self._told_rows
        self._told.append(values or {})
        self._told_rows += len(boxes)
        if not len(boxes):
            return
        ids = labels.ravel().astype(np.intp)
        cut = _touches_inner_border(boxes, tile.outer, self.canvas.shape)
        owned = _owned(ids, boxes, tile)
        self._keep_orphans(labels, boxes, cut & ~owned, tile, row)
        block = self.canvas.read(tile.outer.y, tile.outer.x, tile.outer.height, tile.outer.width)
        absolute = boxes + np.array([tile.outer.y, tile.outer.x, tile.outer.y, tile.outer.x])
        new = self._number(absolute, owned, cut, _met(ids, block, owned), row)
        np.copyto(block, new.take(ids).reshape(block.shape), where=block == 0)
        self.canvas.write(tile.outer.y, tile.outer.x, block)

    def finish(self) -> None:
        """Paint the cut objects that no tile owned and that nothing covers."""
        for window, mask, row in self._orphans:
            block = self.canvas.read(window.y, window.x, window.height, window.width)
            free = mask & (block == 0)
            if np.count_nonzero(free) > SAME_NUCLEUS * np.count_nonzero(mask):
                box = [window.y, window.x, window.y + window.height, window.x + window.width]
                block[free] = self._new_id(box, True, row)
                self.canvas.write(window.y, window.x, block)
        self._orphans.clear()

    def values(self) -> dict[str, NDArray[np.float64]]:
        """Return what was told of the ids 1..n, float64 (n,) by name; of joined pieces, what was told of the first."""
        names = self._told[0] if self._told else {}
        rows = np.array(self._rows, np.intp)
        return {name: np.concatenate([one[name] for one in self._told])[rows] for name in names}

    def _number(
        self,
        boxes: NDArray[np.int64],
        owned: NDArray[np.bool_],
        cut: NDArray[np.bool_],
        met: Mapping[int, _Meeting],
        row: int,
    ) -> NDArray[np.int32]:
        """Return the id on the canvas for each local id, 0 where it is not painted."""
        new = np.zeros(len(boxes) + 1, np.int32)
        fresh = owned.copy()
        fresh[[local - 1 for local in met]] = False
        new[1:][fresh] = np.arange(1, np.count_nonzero(fresh) + 1) + len(self)
        self.boxes.extend(boxes[fresh].tolist())
        self.clipped.extend(cut[fresh].tolist())
        self._rows.extend((np.flatnonzero(fresh) + row).tolist())
        for local, meeting in met.items():
            box, is_cut, other = boxes[local - 1].tolist(), bool(cut[local - 1]), meeting.other
            if self.clipped[other - 1]:
                new[local] = other
                self.boxes[other - 1] = _union(self.boxes[other - 1], box)
            elif meeting.share > SAME_NUCLEUS:
                self.duplicates += not is_cut
            else:
                new[local] = self._new_id(box, is_cut, row + local - 1)
        return new

    def _keep_orphans(
        self, labels: LabelMap, boxes: NDArray[np.int64], candidates: NDArray[np.bool_], tile: Tile, row: int
    ) -> None:
        # Only an object that reaches from the core through the whole halo can be disowned by every tile that sees it.
        core = tile.core.relative_to(tile.outer)
        meets_core = (
            (boxes[:, 0] < core.y + core.height)
            & (boxes[:, 2] > core.y)
            & (boxes[:, 1] < core.x + core.width)
            & (boxes[:, 3] > core.x)
        )
        for index in np.flatnonzero(candidates & meets_core).tolist():
            y0, x0, y1, x1 = boxes[index].tolist()
            window = Window(tile.outer.y + y0, tile.outer.x + x0, y1 - y0, x1 - x0)
            self._orphans.append((window, labels[y0:y1, x0:x1] == index + 1, row + index))

    def _new_id(self, box: list[int], clipped: bool, row: int) -> int:
        self.boxes.append(box)
        self._rows.append(row)
        self.clipped.append(clipped)
        return len(self.boxes)


def _touches_inner_border(boxes: NDArray[np.int64], outer: Window, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Tell which boxes touch a border of the window that is not a border of the picture."""
    touches = np.zeros(len(boxes), bool)
    if outer.y > 0:
        touches |= boxes[:, 0] == 0
    if outer.x > 0:
        touches |= boxes[:, 1] == 0
    if outer.y + outer.height < shape[0]:
        touches |= boxes[:, 2] == outer.height
    if outer.x + outer.width < shape[1]:
        touches |= boxes[:, 3] == outer.width
    return touches


@dataclass(frozen=True)
class _Meeting:
    """An object meets one that is painted already: its id, and their overlap as a share of the smaller one."""

    other: int
    share: float


def _met(ids: NDArray[np.intp], block: LabelMap, owned: NDArray[np.bool_]) -> dict[int, _Meeting]:
    """Return, per owned local id that meets painted pixels, the id that it meets most."""
    hits = np.flatnonzero(np.concatenate(([False], owned)).take(ids) & (block.ravel() > 0))
    if not hits.size:
        return {}
    found = {}
    pairs, counts = np.unique(np.stack([ids[hits], block.ravel()[hits]]), axis=1, return_counts=True)
    for local in np.unique(pairs[0]).tolist():
        mine = np.flatnonzero(pairs[0] == local)
        most = mine[counts[mine].argmax()]
        other = int(pairs[1, most])
        smaller = min(np.count_nonzero(ids == local), np.count_nonzero(block == other))
        found[local] = _Meeting(other, float(counts[most] / smaller))
    return found


def _owned(ids: NDArray[np.intp], boxes: NDArray[np.int64], tile: Tile) -> NDArray[np.bool_]:
    """Tell which objects have their centroid in the core; only for those that cross its border is it computed."""
    core = tile.core.relative_to(tile.outer)
    low = np.array([core.y, core.x])
    high = low + np.array([core.height, core.width])
    inside: NDArray[np.bool_] = (boxes[:, :2] >= low).all(1) & (boxes[:, 2:] <= high).all(1)
    apart = (boxes[:, :2] >= high).any(1) | (boxes[:, 2:] <= low).any(1)
    crosses = ~inside & ~apart
    if not crosses.any():
        return inside
    pixels = np.flatnonzero(np.concatenate(([False], crosses)).take(ids))
    members = ids.take(pixels)
    n = len(boxes) + 1
    area = np.bincount(members, minlength=n)[1:]
    sums = np.stack([np.bincount(members, axis, n)[1:] for axis in np.divmod(pixels, tile.outer.width)], axis=1)
    # Sums of pixel indices are exact, so a centroid on the border between two cores has one owner.
    inside |= crosses & (sums >= low * area[:, None]).all(1) & (sums < high * area[:, None]).all(1)
    return inside


def _union(a: list[int], b: list[int]) -> list[int]:
    return [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]
