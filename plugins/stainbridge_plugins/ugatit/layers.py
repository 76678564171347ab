"""The layers that are U-GAT-IT's own: normalisation between instance and layer, pooling that can be fixed, spectral normalisation."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from stainbridge.torchkit.normalisation import map_wide, moments

if TYPE_CHECKING:
    import torch


@cache
def norms() -> Any:
    """Return `AdaILN`, whose scale and offset are given, and `ILN`, which learns its own.

    Each mixes instance and layer normalisation, channel by channel: rho * instance + (1 - rho) * layer, of unbiased variances plus
    1e-5 (Kim et al. 2020, equation 1).
    """
    import torch

    class Mixed(map_wide()):
        def __init__(self, channels: int, rho: float) -> None:
            super().__init__()
            self.rho = torch.nn.Parameter(torch.full((1, channels, 1, 1), rho))

        def measure(self, x: torch.Tensor, pooled: bool) -> torch.Tensor:
            """Return mean and variance of each channel, and of all of them at each channel: (4, N, C, 1, 1)."""
            pixels = x.shape[2] * x.shape[3] * (x.shape[0] if pooled else 1)
            channels = x.shape[1]
            mean, variance = moments(x, pooled=pooled, correction=1).unbind()
            whole = mean.mean(dim=1, keepdim=True)
            # Sums of squares: within the channels, and between their means.
            squares = (variance * (pixels - 1) + (mean - whole) ** 2 * pixels).sum(dim=1, keepdim=True)
            spread = squares / (channels * pixels - 1)
            return torch.stack([mean, variance, whole.expand_as(mean), spread.expand_as(mean)])

        def normalised(self, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
            mean, variance, whole, spread = self.measured(x).unbind()
            instance = self.rho * torch.rsqrt(variance + 1e-5)
            layer = (1.0 - self.rho) * torch.rsqrt(spread + 1e-5)
            scale = (instance + layer) * gamma
            offset = beta - (instance * mean + layer * whole) * gamma
            return torch.addcmul(offset, x.to(scale.dtype), scale).to(x.dtype)

    class AdaILN(Mixed):
        def __init__(self, channels: int) -> None:
            super().__init__(channels, 0.9)

        def forward(self, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
            return self.normalised(x, gamma[:, :, None, None], beta[:, :, None, None])

    class ILN(Mixed):
        def __init__(self, channels: int) -> None:
            super().__init__(channels, 0.0)
            self.gamma = torch.nn.Parameter(torch.ones(1, channels, 1, 1))
            self.beta = torch.nn.Parameter(torch.zeros(1, channels, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.normalised(x, self.gamma, self.beta)

    return SimpleNamespace(AdaILN=AdaILN, ILN=ILN)


@cache
def pools() -> Any:
    """Return `Average` and `Maximum`, which take (N, C, H, W) to (N, C); to (1, C) where pooled over a batch or fixed."""

    class Average(map_wide()):
        def measure(self, x: torch.Tensor, pooled: bool) -> torch.Tensor:
            found = x.mean(dim=(2, 3))
            return found.mean(dim=0, keepdim=True) if pooled else found

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.measured(x)

    class Maximum(map_wide()):
        def measure(self, x: torch.Tensor, pooled: bool) -> torch.Tensor:
            # Of several equal maxima max takes the first for the gradient, as the original's pooling does; amax would share it out.
            found = x.flatten(2).max(dim=2).values
            return found.max(dim=0, keepdim=True).values if pooled else found

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.measured(x)

    return SimpleNamespace(Average=Average, Maximum=Maximum)


@cache
def spectral() -> Any:
    """Return `Conv` and `Linear` whose weight is divided by its largest singular value (Miyato et al. 2018).

    Parameters and buffers are named as by `torch.nn.utils.spectral_norm`: `weight_orig`, `weight_u`, `weight_v`. One step of the power
    iteration per call in training, none in evaluation.
    """
    from torch import nn
    from torch.nn import functional

    class Conv(nn.Conv2d):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            _split(self)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.conv2d(x, _by_norm(self), self.bias, self.stride, self.padding)

    class Linear(nn.Linear):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            _split(self)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(x, _by_norm(self), self.bias)

    return SimpleNamespace(Conv=Conv, Linear=Linear)


def _split(layer: Any) -> None:
    import torch
    from torch.nn.functional import normalize

    weight = layer.weight
    del layer.weight
    layer.weight_orig = weight
    rows, columns = weight.flatten(1).shape
    layer.register_buffer("weight_u", normalize(torch.randn(rows), dim=0, eps=1e-12))
    layer.register_buffer("weight_v", normalize(torch.randn(columns), dim=0, eps=1e-12))


def _by_norm(layer: Any) -> torch.Tensor:
    import torch
    from torch.nn.functional import normalize

    matrix = layer.weight_orig.flatten(1)
    with torch.autocast(matrix.device.type, enabled=False):
        if layer.training:
            with torch.no_grad():
                layer.weight_v.copy_(normalize(matrix.t() @ layer.weight_u, dim=0, eps=1e-12))
                layer.weight_u.copy_(normalize(matrix @ layer.weight_v, dim=0, eps=1e-12))
        # The next call moves the vectors on before this one's gradient is taken.
        u, v = layer.weight_u.clone(), layer.weight_v.clone()
        divided: torch.Tensor = layer.weight_orig / torch.dot(u, matrix @ v)
    return divided
