"""What HoVer-Net learns: nuclear pixels, and how far each lies from the centre of its nucleus.

Source: Graham et al., Medical Image Analysis 58 (2019), section 3.1, and models/hovernet/targets.py of the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stainbridge.torchkit import import_torch

if TYPE_CHECKING:
    import torch

LEAST_PX = 30
"""A nucleus of which fewer pixels lie in the output is not learned from."""


def distance_maps(labels: torch.Tensor, output_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the horizontal and vertical distances to the centres of nuclei, and the nuclear pixels.

    Distances are taken over the whole picture and cut to its middle. They count from the rounded centre of mass less one pixel, as the
    original's do, and each side of a nucleus is divided by its own largest distance.

    Parameters
    ----------
    labels : int64 (N, H, W), instance labels of each picture; 0 is background
    output_px : side of the square in the middle that the network predicts

    Returns
    -------
    hv : float32 (N, 2, output_px, output_px), -1..1; 0 outside nuclei and on nuclei of under `LEAST_PX` pixels in the square
    nuclear : bool (N, output_px, output_px), every labelled pixel, small nuclei too
    """
    torch = import_torch("hovernet")
    own = _one_numbering(labels)
    size = int(own.max()) + 1
    counts = torch.bincount(own.flatten(), minlength=size).clamp_min(1)
    axes = [_offsets(own, counts, axis) for axis in (2, 1)]
    hv = torch.stack([_scaled(offset, own, size) for offset in axes], dim=1)
    inside = middle(own, output_px)
    learned = torch.bincount(inside.flatten(), minlength=size) >= LEAST_PX
    learned[0] = False
    hv = middle(hv, output_px) * learned[inside][:, None]
    return hv, middle(labels, output_px) > 0


def middle(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Cut (..., H, W) to the square of `side` pixels in its middle; the odd pixel is cut at the lower right."""
    height, width = maps.shape[-2:]
    top, left = (height - side) // 2, (width - side) // 2
    return maps[..., top : top + side, left : left + side]


def _one_numbering(labels: torch.Tensor) -> torch.Tensor:
    """Return labels (N, H, W) in which no two pictures share an id, background apart."""
    torch = import_torch("hovernet")
    highest = labels.amax(dim=(1, 2))
    before = torch.cumsum(highest, 0) - highest
    return torch.where(labels > 0, labels + before[:, None, None], 0)


def _offsets(own: torch.Tensor, counts: torch.Tensor, axis: int) -> torch.Tensor:
    torch = import_torch("hovernet")
    shape = [1, 1, 1]
    shape[axis] = own.shape[axis]
    position = torch.arange(own.shape[axis], device=own.device).reshape(shape).expand_as(own)
    total = torch.zeros_like(counts).scatter_add_(0, own.flatten(), position.flatten())
    # floor(mean + 1/2) in whole numbers, so that no rounding depends on the device.
    centre = torch.div(2 * total + counts, 2 * counts, rounding_mode="floor")
    return torch.where(own > 0, position + 1 - centre[own], 0)


def _scaled(offset: torch.Tensor, own: torch.Tensor, size: int) -> torch.Tensor:
    torch = import_torch("hovernet")
    extremes = []
    for sign in (-1, 1):
        reach = torch.zeros(size, dtype=offset.dtype, device=offset.device)
        reach.scatter_reduce_(0, own.flatten(), (sign * offset).flatten(), "amax")
        extremes.append(reach.clamp_min(1))
    below, above = extremes
    return torch.where(offset < 0, offset / below[own], offset / above[own]).float()
