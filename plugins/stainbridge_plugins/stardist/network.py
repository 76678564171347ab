"""The StarDist 2D network in torch, with the weights of the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stainbridge.errors import WeightsCorrupt

from .design import Design, Pair, layers, walk
from .keras_weights import Tensors

if TYPE_CHECKING:
    import torch

_ACTIVATIONS = ("elu", "linear", "relu", "selu", "sigmoid", "softplus", "tanh")


class UNet:
    """The network on one device.

    Parameters
    ----------
    design : of the official config.json
    tensors : by layer, as `read_keras` gives them
    device : where it runs

    Raises
    ------
    WeightsCorrupt
        If the design has an activation that is not known here.
    """

    def __init__(self, design: Design, tensors: Mapping[str, Tensors], device: torch.device) -> None:
        import torch

        for layer in layers(design):
            if layer.activation not in _ACTIVATIONS:
                raise WeightsCorrupt(
                    f"Layer {layer.name!r} has the activation {layer.activation!r}, which the torch backend does not have; "
                    f'it has {", ".join(_ACTIVATIONS)}.\nRun it with backend = "tensorflow".'
                )
        self.design = design
        # Pictures come with their channels last; kernels of the same order spare a CPU a quarter of the time.
        order = torch.channels_last
        self._tensors = {
            name: (torch.from_numpy(one.kernel).to(device, memory_format=order), torch.from_numpy(one.bias).to(device))
            for name, one in tensors.items()
        }

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map float (N, C, H, W) to probability (N, 1, h, w) and distances (N, rays, h, w) on the grid.

        H and W are multiples of the design's `multiple_of`.
        """
        prob, dist = walk(self.design, x, self)
        return prob, dist

    def conv(self, x: Any, name: str, filters: int, kernel: Pair, activation: str, normalised: bool) -> Any:
        """Convolve and activate; batch normalisation is part of the tensors."""
        import torch

        weight, bias = self._tensors[name]
        before = [(side - 1) // 2 for side in kernel]
        if all(side % 2 for side in kernel):
            x = torch.nn.functional.conv2d(x, weight, bias, padding=before)
        else:  # Keras puts the odd pixel of padding behind
            after = [side - 1 - pad for side, pad in zip(kernel, before, strict=True)]
            x = torch.nn.functional.pad(x, (before[1], after[1], before[0], after[0]))
            x = torch.nn.functional.conv2d(x, weight, bias)
        return _activate(x, activation)

    def pool(self, x: Any, pool: Pair) -> Any:
        """Take the maximum of each cell."""
        import torch

        return torch.nn.functional.max_pool2d(x, pool)

    def join(self, x: Any, pool: Pair, skip: Any) -> Any:
        """Repeat each cell, and put the channels of `skip` behind."""
        import torch

        wide = torch.nn.functional.interpolate(x, scale_factor=pool, mode="nearest")
        return torch.cat([wide, skip], dim=1)


def _activate(x: torch.Tensor, name: str) -> torch.Tensor:
    import torch

    if name == "linear":
        return x
    if name == "relu":
        return torch.relu_(x)
    activated: torch.Tensor = getattr(torch.nn.functional, name)(x)
    return activated
