"""How masks are drawn, and how many tiles a device takes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from stainbridge.errors import DeviceUnavailable

T = TypeVar("T")


@dataclass(frozen=True)
class Drawing:
    """How masks are drawn from what a network predicts; the names are cellpose's.

    Parameters
    ----------
    rescale : size of the network's pixels over size of the given ones: the given picture is resized by this
    flow_threshold : largest mean squared difference between a mask's own flows and the predicted ones; 0 checks nothing
    cellprob_threshold : logit above which a pixel belongs to a nucleus
    niter : steps along the flows; 0 for cellpose's own number
    resample : draw at the size of the given picture, not at that of the network's
    tiles : of the network that are run at once
    """

    rescale: float
    flow_threshold: float
    cellprob_threshold: float
    niter: int
    resample: bool
    tiles: int


def with_fewer_tiles(run: Callable[[int], T], tiles: int) -> T:
    """Return `run(tiles)`, with half as many tiles at once whenever the memory of the device runs out.

    Raises
    ------
    DeviceUnavailable
        If a single tile does not fit.
    """
    import torch

    while True:
        # Left before the next try: the traceback of an exception keeps the tensors of the failed one alive.
        try:
            return run(tiles)
        except torch.OutOfMemoryError:
            if tiles == 1:
                raise DeviceUnavailable(
                    "One tile of cellpose does not fit into the memory of the device.\n"
                    "Close what else uses the device, or pass --device cpu."
                ) from None
        tiles //= 2
        torch.cuda.empty_cache()
