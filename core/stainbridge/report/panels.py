"""The paper's Figure 2: the IHC, the virtual H&E, the truth, and what each method found, missed and invented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import ContractViolation
from stainbridge.overlap import matched, overlaps
from stainbridge.records import RGB, LabelMap

from .drawing import new_figure, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TP, FP, FN = (0, 80, 255), (230, 0, 0), (0, 190, 0)
"""Blue for found, red for invented, green for missed, sRGB, as in the paper."""

TRUTH = (225, 0, 200)
"""Outlines of the truth, sRGB: magenta stands out from blue, brown and white."""

WHOLE_PX = 512
"""A picture with no side longer than this is shown whole."""

WINDOW_PX = 384
"""Side of what is shown of a larger picture."""

FILL = 0.35
"""Opacity of the colour over a nucleus; its outline is opaque."""

_STEP_PX = 32
_ACROSS = 6

Window: TypeAlias = tuple[int, int, int, int]
"""y, x, height, width in pixels."""


@dataclass(frozen=True)
class Panel:
    """One picture of Figure 2.

    Parameters
    ----------
    picture : its name
    ihc : uint8 (H, W, 3)
    truth : int32 (H, W)
    he : virtual H&E uint8 (h, w, 3) by translator; of the same field, on any grid
    found : labels int32 (H, W) by method

    Raises
    ------
    ContractViolation
        If truth or a prediction differs from the IHC in size.
    """

    picture: str
    ihc: RGB
    truth: LabelMap
    he: Mapping[str, RGB] = field(default_factory=dict)
    found: Mapping[str, LabelMap] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, labels in {"truth": self.truth, **self.found}.items():
            if labels.shape != self.ihc.shape[:2]:
                raise ContractViolation(
                    f"{self.picture!r}: labels of {name!r} are {labels.shape}, the picture is {self.ihc.shape[:2]}."
                )


@dataclass(frozen=True)
class Verdict:
    """Which objects are found, invented and missed at IoU 0.5, as bool by id; index 0 is the background, False."""

    tp: NDArray[np.bool_]
    fp: NDArray[np.bool_]
    fn: NDArray[np.bool_]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of true positives, false positives and false negatives."""
        return int(self.tp.sum()), int(self.fp.sum()), int(self.fn.sum())


def judge(truth: LabelMap, found: LabelMap) -> Verdict:
    """Match two label maps int32 (H, W) one to one at IoU 0.5."""
    table = overlaps(truth, found)
    pairs = matched(table, 50)
    in_truth, in_found = _ids(truth), _ids(found)
    hit, met = np.zeros(_length(in_found), bool), np.zeros(_length(in_truth), bool)
    hit[in_found[table.j[pairs]]] = True
    met[in_truth[table.i[pairs]]] = True
    return Verdict(hit, _others(in_found, hit), _others(in_truth, met))


def paint(ihc: RGB, truth: LabelMap, found: LabelMap, verdict: Verdict | None = None) -> RGB:
    """Return the IHC with nuclei tinted and outlined: found blue, invented red, missed green.

    Parameters
    ----------
    ihc : uint8 (H, W, 3)
    truth, found : int32 (H, W)
    verdict : of the whole picture where these are a part of it; None to match here
    """
    verdict = verdict or judge(truth, found)
    painted = ihc.astype(np.float64)
    layers = [(verdict.fn[truth], truth, FN), (verdict.fp[found], found, FP), (verdict.tp[found], found, TP)]
    for mask, _, colour in layers:
        # From the IHC, not from the layer below: red over green would look like DAB.
        painted[mask] = (1 - FILL) * ihc[mask] + FILL * np.array(colour)
    # What was missed is outlined last: a wrong nucleus may lie over it.
    for mask, labels, colour in reversed(layers):
        painted[mask & outlines(labels)] = colour
    return np.rint(painted).astype(np.uint8)


def outlines(labels: LabelMap) -> NDArray[np.bool_]:
    """Return bool (H, W): pixels of a nucleus that touch something else above, below, left or right."""
    edge = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge & (labels > 0)


def window(labels: LabelMap) -> Window:
    """Return what is shown of a picture: all of it up to 512 px, else the 384 px square with most nuclei, in steps of 32 px.

    A nucleus lies where its centroid is; of equal squares the first in reading order is taken.
    """
    height, width = labels.shape
    if max(height, width) <= WHOLE_PX:
        return 0, 0, height, width
    rows, columns = min(WINDOW_PX, height), min(WINDOW_PX, width)
    y, x = _centroids(labels)
    grid = np.zeros((-(-height // _STEP_PX) + 1, -(-width // _STEP_PX) + 1), np.int64)
    np.add.at(grid, (y // _STEP_PX + 1, x // _STEP_PX + 1), 1)
    total = grid.cumsum(0).cumsum(1)
    h, w = max(rows // _STEP_PX, 1), max(columns // _STEP_PX, 1)
    sums = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return min(int(top) * _STEP_PX, height - rows), min(int(left) * _STEP_PX, width - columns), rows, columns


def draw_panels(panels: Sequence[Panel], *, title: str = "") -> Figure:
    """Draw each picture as a row: IHC, virtual H&E, truth, then each method; a long row goes on in the next line.

    Nuclei are matched over the whole picture, also where only a part of it is shown; the counts are those of the whole picture.
    """
    lines = [row for panel in panels for row in _broken(_tiles(panel))]
    across = max((len(line) for line in lines), default=1)
    figure = new_figure(max(2.35 * across, 5), 2.75 * max(len(lines), 1) + 0.8)
    axes = figure.subplots(max(len(lines), 1), across, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    for row, line in zip(axes, lines, strict=False):
        for place, (heading, pixels) in zip(row, line, strict=False):
            _show(place, heading, pixels)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    _legend(figure)
    return figure


def _tiles(panel: Panel) -> list[tuple[str, RGB]]:
    """Return heading and pixels of each tile of a picture."""
    labels = panel.truth if panel.truth.any() else next(iter(panel.found.values()), panel.truth)
    y, x, height, width = window(labels)
    cut = np.s_[y : y + height, x : x + width]
    ihc, truth = panel.ihc[cut], panel.truth[cut]
    truth_height, truth_width = panel.truth.shape
    whole = (height, width) == panel.truth.shape
    part = "" if whole else f"\n{width} x {height} px at ({x}, {y})"
    tiles = [(f"{wrapped(panel.picture, 28)}{part}", ihc)]
    tiles += [
        (f"virtual H&E: {name}", _field(he, (truth_height, truth_width), (y, x, height, width)))
        for name, he in panel.he.items()
    ]
    outlined = ihc.copy()
    outlined[outlines(truth)] = TRUTH
    tiles.append((f"truth: {_count(panel.truth)} nuclei", outlined))
    for method, found in panel.found.items():
        verdict = judge(panel.truth, found)
        tp, fp, fn = verdict.counts
        painted = paint(ihc, truth, found[cut], verdict)
        tiles.append((f"{wrapped(method, 28)}\nTP {tp}  FP {fp}  FN {fn}", painted))
    return tiles


def _broken(tiles: list[tuple[str, RGB]]) -> list[list[tuple[str, RGB]]]:
    """Break a row into lines of nearly equal length."""
    lines = -(-len(tiles) // _ACROSS)
    across = -(-len(tiles) // lines)
    return [tiles[start : start + across] for start in range(0, len(tiles), across)]


def _field(he: RGB, shape: tuple[int, int], shown: Window) -> RGB:
    """Return the part of a virtual H&E that shows `shown` of a picture of `shape`, on its own grid."""
    y, x, height, width = shown
    down, across = he.shape[0] / shape[0], he.shape[1] / shape[1]
    top, left = round(y * down), round(x * across)
    bottom, right = max(round((y + height) * down), top + 1), max(round((x + width) * across), left + 1)
    return he[top:bottom, left:right]


def _show(place: Axes, heading: str, pixels: RGB) -> None:
    place.imshow(pixels, aspect=1)
    place.set_title(heading, fontsize=7, loc="left", pad=3, linespacing=1.15, verticalalignment="bottom")


def _legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    named = {"found (TP)": TP, "invented (FP)": FP, "missed (FN), IoU 0.5": FN, "truth": TRUTH}
    handles: list[Any] = [Patch(color=(r / 255, g / 255, b / 255)) for r, g, b in named.values()]
    figure.legend(handles, list(named), loc="outside lower left", ncols=len(named), fontsize=8, frameon=False)


def _ids(labels: LabelMap) -> NDArray[np.int64]:
    """Return the ids that occur, in order, without the background."""
    return np.flatnonzero(np.bincount(labels.ravel(), minlength=1)[1:]) + 1


def _length(ids: NDArray[np.int64]) -> int:
    return int(ids.max(initial=0)) + 1


def _others(ids: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rest = np.zeros(len(chosen), bool)
    rest[ids] = ~chosen[ids]
    return rest


def _count(labels: LabelMap) -> int:
    return len(_ids(labels))


def _centroids(labels: LabelMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the whole pixel (y, x) that holds each centroid."""
    y, x = np.nonzero(labels)
    area = np.bincount(labels[y, x])
    present = np.flatnonzero(area)
    middle = [np.bincount(labels[y, x], weights=axis)[present] / area[present] for axis in (y, x)]
    return middle[0].astype(np.int64), middle[1].astype(np.int64)
