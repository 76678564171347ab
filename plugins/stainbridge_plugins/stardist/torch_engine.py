"""StarDist without TensorFlow: the network in torch, the rest by stardist's own code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stainbridge import LabelMap
from stainbridge.torchkit import Precision, autocast, import_torch, in_batches, resolve_device

from .design import Design
from .files import ModelFiles
from .instances import Thresholds, find_instances, require_stardist

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TorchEngine:
    """A model on one device.

    Parameters
    ----------
    network : maps (N, C, H, W) to probability and distances
    device : where it runs
    channels : of its input
    multiple_of : what the sides of its input must be multiples of
    grid : pixels per cell of its output
    precision : of the network's arithmetic
    batch_size : pictures at once, as far as memory goes
    """

    network: Any
    device: torch.device
    channels: int
    multiple_of: tuple[int, int]
    grid: tuple[int, int]
    precision: Precision
    batch_size: int

    @classmethod
    def load(
        cls, files: ModelFiles, design: Design | None, *, device: str, precision: Precision, batch_size: int
    ) -> TorchEngine:
        """Load a model; without a design, a state dict of stardist_pytorch.

        Raises
        ------
        MissingExtra, DeviceUnavailable (also for a precision that the device does not have), WeightsCorrupt
        """
        require_stardist()
        import_torch("stardist")
        chosen = resolve_device(device)
        autocast(chosen, precision)  # refuses what the device cannot do, before anything is computed
        if design is None:
            from stainbridge.weights import load_state_dict

            from .group_network import MULTIPLE_OF, GroupUNet

            group = GroupUNet(load_state_dict(files.weights), chosen, file=files.weights.name)
            return cls(group, chosen, group.channels, MULTIPLE_OF, (1, 1), precision, batch_size)
        from .keras_weights import read_keras
        from .network import UNet

        network = UNet(design, read_keras(files.weights, design), chosen)
        return cls(network, chosen, design.n_channel_in, design.multiple_of, design.grid, precision, batch_size)

    def maps(self, pictures: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Map float32 (N, H, W, C) to probability (N, h, w) and distances (N, h, w, rays).

        The lower right is mirrored up to whole cells of the deepest level, as stardist does; h and w count that margin in.
        """
        sides = zip(pictures.shape[1:3], self.multiple_of, strict=True)
        extra = [-side % multiple for side, multiple in sides]
        padded = np.pad(pictures, ((0, 0), (0, extra[0]), (0, extra[1]), (0, 0)), mode="reflect")
        both = in_batches(self._run, padded, self.batch_size)
        return both[..., 0], both[..., 1:]

    def _run(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode(), autocast(self.device, self.precision):
            x = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2)
            both = torch.cat([part.float() for part in self.network(x)], dim=1)
            found: NDArray[np.float32] = both.permute(0, 2, 3, 1).cpu().numpy()
        return found

    def labels(self, pictures: NDArray[np.float32], thresholds: Thresholds) -> list[LabelMap]:
        """Segment float32 (N, H, W, C) into N label maps int32 (H, W)."""
        height, width = pictures.shape[1:3]
        prob, dist = self.maps(pictures)
        return [
            find_instances(one, far, shape=(height, width), grid=self.grid, thresholds=thresholds)
            for one, far in zip(prob, dist, strict=True)
        ]
