"""What learners share: settings, a pool of past pictures, averaged weights; and, from the files beside it, networks that learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from ..interfaces import PluginConfig, Snapshot
from .devices import AskedPrecision, Precision, autocast, cuda_has_bf16, import_torch
from .ensemble import Ensemble, Losses
from .states import adam, copied, joined, of_network, of_optimiser, part, to_network, to_optimiser, to_tensors

if TYPE_CHECKING:
    import torch

__all__ = [
    "EMA",
    "Ensemble",
    "ImagePool",
    "LearnerSettings",
    "Losses",
    "adam",
    "distance",
    "joined",
    "of_network",
    "of_optimiser",
    "part",
    "resolve_precision",
    "to_network",
    "to_optimiser",
]


class LearnerSettings(PluginConfig):
    """How a learner computes, whatever it learns."""

    precision: AskedPrecision = Field(
        "auto", description="auto: bf16 on GPUs that compute in it (NVIDIA: Ampere or newer), else fp32"
    )
    channels_last: bool | None = Field(
        None, description="memory format of pictures and weights; None: on CPUs, and on GPUs if networks are compiled"
    )
    compile: bool = Field(False, description="compile the networks, which takes a minute or more at first")
    fused: bool = Field(False, description="the fused form of Adam")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of an average of the weights, which is then exported; 0: none"
    )
    accumulate: int = Field(
        1, ge=1, description="parts that a batch goes through in, one after another, to save memory"
    )

    def keeps_channels_last(self, device: torch.device) -> bool:
        """Return whether networks and pictures are in channels_last on a device.

        Where nothing is set: not on a GPU without a compiler, where torch's group normalisation leaves that format at every layer; on an
        H200 a step of CycleGAN then takes 1.2 times as long.
        """
        return device.type == "cpu" or self.compile if self.channels_last is None else self.channels_last


def resolve_precision(precision: AskedPrecision, device: torch.device) -> Precision:
    """Return what "auto" means on a device; refuse what the device does not have.

    Raises
    ------
    DeviceUnavailable
        As `stainbridge.torchkit.autocast`.
    """
    if precision == "auto":
        return "bf16" if device.type == "cuda" and cuda_has_bf16(device) else "fp32"
    autocast(device, precision)
    return precision


def distance(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of two batches, by which cycles and identity are judged."""
    import torch

    difference: torch.Tensor = torch.nn.functional.l1_loss(found, truth)
    return difference


class ImagePool:
    """Past pictures of a generator, some of which a discriminator is shown instead of new ones (Shrivastava et al. 2017).

    Parameters
    ----------
    size : pictures kept; 0 passes everything through
    rng : for each picture once the pool is full, `random()` below 0.5 for a past one, and then `integers(size)` for which
    """

    def __init__(self, size: int = 50, *, rng: np.random.Generator) -> None:
        self.size = size
        self._rng = rng
        self._images: list[torch.Tensor] = []

    def exchange(self, images: torch.Tensor) -> torch.Tensor:
        """Return pictures for the pictures (N, C, H, W), in their memory format; one by one, new ones take the place of those returned.

        Nothing waits for the device.
        """
        if not self.size:
            return images
        torch = import_torch("training")
        found = torch.empty_like(images)
        for row, image in zip(found, images.detach(), strict=True):
            row.copy_(self._exchanged(image))
        return found

    def _exchanged(self, image: torch.Tensor) -> torch.Tensor:
        if len(self._images) < self.size:
            self._images.append(image.clone())
            return image
        if self._rng.random() >= 0.5:
            return image
        place = int(self._rng.integers(self.size))
        past, self._images[place] = self._images[place], image.clone()
        return past

    def snapshot(self) -> Snapshot:
        """Return the pictures and the state of the generator of random numbers."""
        torch = import_torch("training")
        images = {"images": torch.stack(self._images).cpu().contiguous()} if self._images else {}
        return Snapshot(images, {"rng": self._rng.bit_generator.state})

    def restore(self, state: Snapshot, device: torch.device) -> None:
        """Go on from a snapshot, with the pictures on a device."""
        images = state.tensors.get("images")
        self._images = [] if images is None else list(images.to(device, copy=True))
        self._rng.bit_generator.state = state.values["rng"]


class EMA:
    """The exponential moving average of the weights of a network.

    Parameters
    ----------
    network : is read at each `update`
    decay : share of the past in the average; less in the beginning, (1 + n) / (10 + n) at update n, so that the first weights fade
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self._network, self._decay, self._updates = network, decay, 0
        self._kept: dict[str, torch.Tensor] = {
            name: tensor.detach().clone() for name, tensor in network.state_dict().items()
        }

    def update(self) -> None:
        """Take the network's weights into the average, after each step of its optimiser."""
        torch = import_torch("training")
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        now = self._network.state_dict()
        moving = [name for name, tensor in self._kept.items() if tensor.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([self._kept[name] for name in moving], [now[name] for name in moving], 1 - decay)
            for name in self._kept.keys() - set(moving):
                self._kept[name].copy_(now[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the averages by name, as the network's state dict."""
        return dict(self._kept)

    def snapshot(self) -> Snapshot:
        """Return averages and the number of updates."""
        return Snapshot({name: copied(tensor) for name, tensor in self._kept.items()}, {"updates": self._updates})

    def restore(self, state: Snapshot) -> None:
        """Go on from a snapshot; ConfigError if it is that of another network."""
        to_tensors(self._kept, state.tensors)
        self._updates = int(state.values["updates"])
