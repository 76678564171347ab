"""The transformer of cellpose 4 (Cellpose-SAM and kin), run by cellpose 4 itself."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stainbridge import LabelMap
from stainbridge.torchkit import resolve_device

from .drawing import Drawing, with_fewer_tiles


class Fourth:
    """A `CellposeModel` of cellpose 4: always three planes, trained at a diameter of 30 px.

    Parameters
    ----------
    path : an existing file that was seen to hold such a network; cellpose would download another in place of a missing one
    """

    channels = 3
    diameter_px = 30.0

    def __init__(self, path: Path, *, device: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its imports are not ours to mend
            from cellpose.models import CellposeModel
        logging.getLogger("cellpose").addHandler(logging.NullHandler())
        self.model = CellposeModel(pretrained_model=str(path.resolve()), device=resolve_device(device))

    def label(self, planes: NDArray[np.float32], drawing: Drawing) -> LabelMap:
        """Return int32 (N, H, W) for float32 (N, H, W, 3)."""
        return np.stack([with_fewer_tiles(partial(self._one, one, drawing), drawing.tiles) for one in planes])

    def _one(self, planes: NDArray[np.float32], drawing: Drawing, tiles: int) -> LabelMap:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
            masks, _, _ = self.model.eval(
                planes,
                batch_size=tiles,
                channel_axis=-1,
                normalize=False,
                diameter=self.diameter_px / drawing.rescale,
                resample=drawing.resample,
                flow_threshold=drawing.flow_threshold,
                cellprob_threshold=drawing.cellprob_threshold,
                min_size=-1,  # its filter may drop others than the small ones: see `third`
                niter=drawing.niter or None,
            )
        return np.reshape(masks, planes.shape[:2]).astype(np.int32)
