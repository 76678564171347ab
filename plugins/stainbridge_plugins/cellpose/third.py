"""The residual U-Net that cellpose had up to 3.x, run by the functions of cellpose 3."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stainbridge import LabelMap
from stainbridge.torchkit import resolve_device
from stainbridge.weights import fill

from .drawing import Drawing, with_fewer_tiles
from .flow_check import without_bad_flows

if TYPE_CHECKING:
    import torch

_LEVELS = [2, 32, 64, 128, 256]
_OUTPUTS = 3


class Third:
    """A `CPnet` with the steps of `CellposeModel.eval`: the same masks, without the pictures of the flows that nobody asked for.

    Parameters
    ----------
    state : tensors by the names of `CPnet`
    file : name for messages
    diameter_px : at which it was trained; None: what its file says, 30 where it says nothing
    """

    channels = _LEVELS[0]

    def __init__(
        self, state: Mapping[str, torch.Tensor], *, file: str, device: str, diameter_px: float | None = None
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its imports are not ours to mend
            from cellpose import core, dynamics, transforms, utils
            from cellpose.resnet_torch import CPnet
        # Without a handler Python would print its "no masks found" to the terminal; one that listens still hears it.
        logging.getLogger("cellpose").addHandler(logging.NullHandler())
        self.device = resolve_device(device)
        self._core, self._dynamics, self._transforms, self._utils = core, dynamics, transforms, utils
        # Not mkldnn: it gains nothing measurable and turns the weights into tensors that cannot be looked at.
        net = CPnet(list(_LEVELS), _OUTPUTS, sz=3, mkldnn=False)
        fill(net, _with_counters(state, net), file=file)
        self.diameter_px = diameter_px or float(net.diam_mean.item())
        self.net = net.to(self.device).eval()

    def label(self, planes: NDArray[np.float32], drawing: Drawing) -> LabelMap:
        """Return int32 (N, H, W) for float32 (N, H, W, C); a second plane of zeros is added where there is one."""
        if planes.shape[-1] < self.channels:
            planes = np.concatenate([planes, np.zeros_like(planes)], axis=-1)
        flows = self._flows(planes, drawing)
        return np.stack([self._masks(one, planes.shape[1:3], drawing) for one in flows])

    def _flows(self, planes: NDArray[np.float32], drawing: Drawing) -> NDArray[np.float32]:
        """Return float32 (N, H, W, 3): flow along y and x, times 5, and the logit of a nucleus."""
        rsz = None if drawing.rescale == 1 else drawing.rescale
        flows, _ = with_fewer_tiles(
            lambda tiles: self._core.run_net(self.net, planes, batch_size=tiles, rsz=rsz), drawing.tiles
        )
        if rsz and drawing.resample:
            flows = self._transforms.resize_image(flows, *planes.shape[1:3])
        return flows

    def _masks(self, flows: NDArray[np.float32], shape: tuple[int, ...], drawing: Drawing) -> LabelMap:
        steps = flows[..., :2].transpose(2, 0, 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
            masks = self._dynamics.compute_masks(
                steps,
                flows[..., 2],
                niter=drawing.niter or (200 / drawing.rescale if drawing.resample else 200),
                cellprob_threshold=drawing.cellprob_threshold,
                flow_threshold=0,
                device=self.device,
            )
        masks = without_bad_flows(masks, steps, drawing.flow_threshold, device=self.device)
        if masks.shape != shape:
            masks = self._transforms.resize_image(masks, *shape, no_channels=True, interpolation=0)  # nearest neighbour
        # Its filter of small masks takes ids to have no gaps, and after the check of flows drops others than the small ones.
        filled = self._utils.fill_holes_and_remove_small_masks(masks, min_size=-1)
        return filled.reshape(shape).astype(np.int32)


def _with_counters(state: Mapping[str, Any], net: Any) -> dict[str, Any]:
    """Return `state` with what older files lack: how many batches a normalisation has seen, and the diameters."""
    optional = ("num_batches_tracked", "diam_mean", "diam_labels")
    own = {name: value for name, value in net.state_dict().items() if name.endswith(optional)}
    return {**own, **state}
