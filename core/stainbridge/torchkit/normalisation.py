"""Layers that look at the whole map, and how to take that look once for a whole picture.

A generator with instance normalisation translates a pixel differently in each tile that holds it, because every layer takes its mean and
variance over the tile. `gather` takes them over a sample of the picture, `fix` makes a network that uses those: its output at a pixel then
depends on the pixels around it alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch

Statistics: TypeAlias = "Mapping[str, torch.Tensor]"
"""What the layers of a network measured over a picture, by the layer's name; shapes are the layers' own affair."""


@cache
def map_wide() -> Any:
    """Return the base class of layers whose output at a pixel depends on the whole map.

    A layer defines `measure(x, pooled)`, which returns one tensor: for each picture of the batch, or, if `pooled`, of the whole batch
    as if it were one picture, with a length of 1 in the place of N. Its `forward` takes that tensor from `measured(x)`.
    """
    import torch

    class MapWide(torch.nn.Module):  # type: ignore[misc]
        fixed: Any
        pooled = False
        """Measure over the whole batch, once, and keep it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.register_buffer("fixed", None, persistent=False)

        def measure(self, x: torch.Tensor, pooled: bool) -> torch.Tensor:
            raise NotImplementedError

        def measured(self, x: torch.Tensor) -> torch.Tensor:
            if self.fixed is not None:
                kept: torch.Tensor = self.fixed
                return kept
            found = self.measure(x, self.pooled)
            if self.pooled:
                self.fixed = found
            return found

    return MapWide


def instance_norm(channels: int) -> torch.nn.Module:
    """Return instance normalisation without parameters, as a group normalisation of one channel per group.

    Maps (N, C, H, W) to the same shape: each channel of each picture minus its mean, by the root of its biased variance plus 1e-5.
    `torch.nn.InstanceNorm2d` computes the same, but its gradient is wrong on a CPU for one picture in channels_last, and it gives
    up that memory format.
    """
    norm: torch.nn.Module = _instance_norm()(channels, channels, affine=False)
    return norm


@cache
def _instance_norm() -> Any:
    import torch

    class InstanceNorm(map_wide(), torch.nn.GroupNorm):  # type: ignore[misc]
        def measure(self, x: torch.Tensor, pooled: bool) -> torch.Tensor:
            return moments(x, pooled=pooled, correction=0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.fixed is None and not self.pooled:
                # Not through the base class, which asks for sizes in a way that cannot be traced.
                alone: torch.Tensor = torch.group_norm(x, self.num_groups, None, None, self.eps)
                return alone
            mean, variance = self.measured(x).unbind()
            scale = torch.rsqrt(variance + self.eps)
            return torch.addcmul(-mean * scale, x.to(scale.dtype), scale).to(x.dtype)

    return InstanceNorm


def moments(x: torch.Tensor, *, pooled: bool, correction: int) -> torch.Tensor:
    """Return mean and variance of each channel of (N, C, H, W): (2, N, C, 1, 1), or (2, 1, C, 1, 1) over the batch if `pooled`.

    In single precision at least. The variance is divided by the number of pixels minus `correction`.
    """
    import torch

    over = (0, 2, 3) if pooled else (2, 3)
    pixels = x.shape[2] * x.shape[3] * (x.shape[0] if pooled else 1)
    # Ten times as fast on a CPU as torch.var_mean, and as exact: the squares are of centred values.
    mean = x.mean(dim=over, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    variance = (x - mean).square().sum(dim=over, keepdim=True) / (pixels - correction)
    return torch.stack([mean, variance])


def gather(network: torch.nn.Module, batch: torch.Tensor) -> Statistics:
    """Return what the layers of a network measure over a batch, taken together as if it were one picture.

    Parameters
    ----------
    network : stays as it is; is run in evaluation mode and at the precision of its weights
    batch : float (N, 3, H, W) as the network takes it, the whole of which goes through the network at once
    """
    import torch

    twin = _twin(network).eval()
    for layer in _layers(twin).values():
        layer.pooled = True
    with torch.no_grad():
        twin(batch)
    return {name: layer.fixed for name, layer in _layers(twin).items()}


def fix(network: torch.nn.Module, statistics: Statistics) -> torch.nn.Module:
    """Return a network with the weights of `network`, the same tensors, that uses `statistics` whatever it is given.

    Its output at a pixel depends on the input within the network's `reach_px`. On the batch of one picture that they were gathered
    from, its output is that of `network`.

    Raises
    ------
    ConfigError
        If the statistics are those of another network.
    """
    twin = _twin(network)
    layers = _layers(twin)
    if layers.keys() != statistics.keys():
        found = sorted(layers.keys() ^ statistics.keys())[0]
        raise ConfigError(f"The statistics were gathered from another network: {found!r} is a layer of one of the two.")
    for name, layer in layers.items():
        layer.fixed = statistics[name]
    return twin


def _layers(network: torch.nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, map_wide())}


def _twin(network: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of the modules that shares the tensors: what is set on it, another thread does not see on `network`."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())})
