"""Drop masks whose own flows differ from the predicted ones: cellpose's check, number for number, faster on a CPU.

cellpose lets heat spread inside each mask from its centre, one mask after another, by index arrays that are made anew in every
step. Here the step is a sparse matrix over the pixels of many masks. Each row adds the same nine values in the same order, so every
sum is rounded as in cellpose, and the errors are the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# The order in which cellpose adds a pixel and its neighbours; floating-point sums depend on it.
_NEIGHBOURS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))
# Matrices of this many pixels stay in a core's own cache.
_CHUNK_PX = 20_000


@dataclass(frozen=True)
class _Mask:
    """One mask: its pixels as places in the padded picture, which of them is the centre, and how many steps heat spreads."""

    pixels: NDArray[np.intp]
    centre: int
    steps: int


def without_bad_flows(
    masks: NDArray[Any], flows: NDArray[np.float32], threshold: float, *, device: torch.device
) -> NDArray[Any]:
    """Return (H, W) masks without those whose mean squared error exceeds `threshold`; ids stay, with gaps. 0 checks nothing.

    Parameters
    ----------
    masks : ids 0..n without gaps
    flows : float32 (2, H, W), as predicted
    """
    if threshold <= 0 or not masks.any():
        return masks
    if device.type != "cpu":
        from cellpose import dynamics

        return dynamics.remove_bad_flow_masks(masks, flows, threshold=threshold, device=device)
    bad = np.flatnonzero(flow_errors(masks, flows) > threshold) + 1
    return np.where(np.isin(masks, bad), masks.dtype.type(0), masks)


def flow_errors(masks: NDArray[Any], flows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return per id 1..n the mean squared difference between the flows of the mask and `flows` / 5, float64 (n,)."""
    from scipy.ndimage import mean

    own, index = mask_flows(masks), np.arange(1, int(masks.max()) + 1)
    errors = np.zeros(len(index))
    for axis in range(2):
        errors += mean((own[axis] - flows[axis] / 5.0) ** 2, masks, index=index)
    return errors


def mask_flows(masks: NDArray[Any]) -> NDArray[np.float64]:
    """Return the unit flows of every mask towards its centre, float64 (2, H, W); equal to cellpose's `masks_to_flows_cpu`."""
    height, width = masks.shape[0] + 2, masks.shape[1] + 2
    # One pixel of background around everything: a neighbour is then always there.
    ids = np.pad(masks.astype(np.int32), 1).ravel()
    offsets = np.array([y * width + x for y, x in _NEIGHBOURS])
    flows = np.zeros((2, height * width))
    for chunk in _chunks(_members(masks, width)):
        pixels = np.concatenate([mask.pixels for mask in chunk])
        flows[:, pixels] = _spread(ids, pixels, offsets, chunk)
    flows /= 1e-60 + (flows**2).sum(axis=0) ** 0.5
    return flows.reshape(2, height, width)[:, 1:-1, 1:-1]


def _members(masks: NDArray[Any], stride: int) -> list[_Mask]:
    """Return the masks by falling number of steps, so that those still spreading are always the first of a chunk."""
    from scipy.ndimage import find_objects

    found = []
    for number, box in enumerate(find_objects(masks), start=1):
        if box is None:
            continue
        y, x = np.nonzero(masks[box] == number)
        # cellpose counts from 1 inside the box, in 32 bits; its mean of these decides between two pixels that are as close.
        ys, xs = (y + 1).astype(np.int32), (x + 1).astype(np.int32)
        centre = int(((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2).argmin())
        steps = 2 * sum(side.stop - side.start + 2 for side in box)
        found.append(_Mask((y + box[0].start + 1) * stride + x + box[1].start + 1, centre, steps))
    return sorted(found, key=lambda mask: -mask.steps)


def _chunks(masks: list[_Mask]) -> list[list[_Mask]]:
    """Cut the list into runs of about `_CHUNK_PX` pixels, at least one mask each."""
    before = np.cumsum([0, *(len(mask.pixels) for mask in masks)])[:-1] // _CHUNK_PX
    return [[masks[i] for i in np.flatnonzero(before == run)] for run in np.unique(before)]


def _spread(
    ids: NDArray[np.int32], pixels: NDArray[np.intp], offsets: NDArray[np.intp], masks: list[_Mask]
) -> NDArray[np.float64]:
    """Return the gradient of heat along y and x at `pixels`, float64 (2, n), after each mask's own number of steps."""
    from scipy.sparse import csr_matrix

    ends = np.cumsum([len(mask.pixels) for mask in masks])
    centres = ends - [len(mask.pixels) - mask.centre for mask in masks]
    steps = np.array([mask.steps for mask in masks])
    around = pixels[:, None] + offsets
    inside = ids[around] == ids[pixels][:, None]
    place = np.empty(int(pixels.max()) + 1, np.int32)
    place[pixels] = np.arange(len(pixels), dtype=np.int32)
    columns = place[np.where(inside, around, pixels[:, None])]
    rows = np.concatenate([[0], np.cumsum(inside.sum(axis=1))]).astype(np.int32)
    chosen = columns[inside]
    heat, done = np.zeros(len(pixels)), 0
    for now in np.unique(steps).tolist():
        alive = int((steps >= now).sum())
        end = int(ends[alive - 1])
        matrix = csr_matrix((np.ones(rows[end]), chosen[: rows[end]], rows[: end + 1]), shape=(end, end))
        spreading = heat[:end]
        for _ in range(now - done):
            spreading[centres[:alive]] += 1
            spreading = 1 / 9.0 * (matrix @ spreading)
        heat[:end], done = spreading, now
    values = np.where(inside, heat[columns], 0.0)
    return np.stack([values[:, 2] - values[:, 1], values[:, 4] - values[:, 3]])
