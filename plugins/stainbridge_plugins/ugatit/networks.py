"""The networks of U-GAT-IT, under the names of the original.

Source: github.com/znxlwm/UGATIT-pytorch, networks.py. The TensorFlow version of the same authors is another network, whose checkpoints do
not fit. Pictures are float (N, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from stainbridge.torchkit.normalisation import instance_norm, map_wide

from .layers import norms, pools, spectral

if TYPE_CHECKING:
    import torch


def generator(*, channels: int = 64, blocks: int = 4, size: int = 256, light: bool = False) -> torch.nn.Module:
    """Return a generator: pictures to (pictures of the same size in [-1, 1], logits (N, 2), heat map (N, 1, H / 4, W / 4)).

    Parameters
    ----------
    channels : of its first convolution; four times as many in its blocks
    blocks : residual blocks before the attention, and as many after it
    size : side in px of the only pictures that a generator that is not `light` takes, a multiple of 4
    light : takes the style from averages of the map instead of the whole map, and so pictures of any size

    Its `size` is None where it takes any; its `reach_px` is how far a pixel of the output looks where the statistics are fixed, from a
    tile that begins at a multiple of 4. With fixed statistics it takes any size.
    """
    network: torch.nn.Module = _classes().Generator(channels, blocks, None if light else size)
    return network


def discriminator(*, channels: int = 64, layers: int = 5) -> torch.nn.Module:
    """Return a discriminator: pictures to (one value per patch (N, 1, h, w), logits (N, 2), heat map (N, 1, h + 1, w + 1)).

    Parameters
    ----------
    channels : of its first convolution
    layers : 5 for the original's local one, with patches of 70 px; 7 for the global one, 286 px
    """
    network: torch.nn.Module = _classes().Discriminator(channels, layers)
    return network


def clip_rho(network: torch.nn.Module) -> None:
    """Bring each `rho`, the share of instance against layer normalisation, back into [0, 1]; after each step of the optimiser."""
    import torch

    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if name.rpartition(".")[2] == "rho":
                tensor.clamp_(0.0, 1.0)


@cache
def _classes() -> Any:
    import torch
    from torch import nn

    class Generator(map_wide()):
        """Measures its style, (2, N, C): the scale and offset of every `AdaILN`."""

        def __init__(self, channels: int, blocks: int, size: int | None) -> None:
            super().__init__()
            wide = 4 * channels
            self.size, self.blocks = size, blocks
            # Two times two convolutions per block at a quarter of the resolution are 16 px; the layers around them are 15.
            self.reach_px = 16 * blocks + 15
            self.gap_fc = nn.Linear(wide, 1, bias=False)
            self.gmp_fc = nn.Linear(wide, 1, bias=False)
            self.conv1x1 = nn.Conv2d(2 * wide, wide, 1)
            self.gamma = nn.Linear(wide, wide, bias=False)
            self.beta = nn.Linear(wide, wide, bias=False)
            for index in range(1, blocks + 1):
                setattr(self, f"UpBlock1_{index}", _block_classes().Styled(wide))
            self.DownBlock = nn.Sequential(*_down(channels, blocks))
            ins = wide if size is None else wide * (size // 4) ** 2
            self.FC = nn.Sequential(
                nn.Linear(ins, wide, bias=False), nn.ReLU(True), nn.Linear(wide, wide, bias=False), nn.ReLU(True)
            )
            self.UpBlock2 = nn.Sequential(*_up(channels))
            self.average, self.maximum = pools().Average(), pools().Maximum()

        def measure(self, x: torch.Tensor, pooled: bool) -> torch.Tensor:
            if self.size is None:
                x = x.mean(dim=(0, 2, 3) if pooled else (2, 3)).reshape(-1, x.shape[1])
            hidden = self.FC(x.flatten(1))
            style = torch.stack([self.gamma(hidden), self.beta(hidden)])
            return style.mean(dim=1, keepdim=True) if pooled else style

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            x = self.DownBlock(x)
            logits = torch.cat([self.gap_fc(self.average(x)), self.gmp_fc(self.maximum(x))], dim=1).expand(
                x.shape[0], 2
            )
            x = torch.relu(self.conv1x1(_attended(x, self.gap_fc.weight, self.gmp_fc.weight)))
            heat = x.sum(dim=1, keepdim=True)
            gamma, beta = self.measured(x).unbind()
            for index in range(1, self.blocks + 1):
                x = getattr(self, f"UpBlock1_{index}")(x, gamma, beta)
            return self.UpBlock2(x), logits, heat

    class Discriminator(nn.Module):
        def __init__(self, channels: int, layers: int) -> None:
            super().__init__()
            wide = channels * 2 ** (layers - 2)
            self.gap_fc = spectral().Linear(wide, 1, bias=False)
            self.gmp_fc = spectral().Linear(wide, 1, bias=False)
            self.conv1x1 = nn.Conv2d(2 * wide, wide, 1)
            self.conv = spectral().Conv(wide, 1, 4, bias=False)
            model: list[nn.Module] = []
            for level in range(layers - 1):
                ins = channels * 2 ** (level - 1) if level else 3
                conv = spectral().Conv(ins, channels * 2**level, 4, stride=2 if level < layers - 2 else 1)
                model += [nn.ReflectionPad2d(1), conv, nn.LeakyReLU(0.2, inplace=True)]
            self.model = nn.Sequential(*model)
            self.average, self.maximum = pools().Average(), pools().Maximum()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            x = self.model(x)
            logits = torch.cat([self.gap_fc(self.average(x)), self.gmp_fc(self.maximum(x))], dim=1)
            # The map is weighted by the weights before their spectral normalisation, the logits by those after it: the original's quirk.
            x = self.conv1x1(_attended(x, self.gap_fc.weight_orig, self.gmp_fc.weight_orig))
            x = nn.functional.leaky_relu(x, 0.2)
            heat = x.sum(dim=1, keepdim=True)
            return self.conv(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")), logits, heat

    return SimpleNamespace(Generator=Generator, Discriminator=Discriminator)


@cache
def _block_classes() -> Any:
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            first = [*_convolved(channels, channels, 3), nn.ReLU(inplace=True)]
            self.conv_block = nn.Sequential(*first, *_convolved(channels, channels, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv_block(x)

    class Styled(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.pad1 = nn.ReflectionPad2d(1)
            self.conv1 = nn.Conv2d(channels, channels, 3, bias=False)
            self.norm1 = norms().AdaILN(channels)
            self.pad2 = nn.ReflectionPad2d(1)
            self.conv2 = nn.Conv2d(channels, channels, 3, bias=False)
            self.norm2 = norms().AdaILN(channels)

        def forward(self, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
            inner = self.norm1(self.conv1(self.pad1(x)), gamma, beta).relu()
            return x + self.norm2(self.conv2(self.pad2(inner)), gamma, beta)

    return SimpleNamespace(Block=Block, Styled=Styled)


def _attended(x: torch.Tensor, average: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
    """Return the map weighted by each classifier's weights (1, C), one behind the other: (N, 2 C, H, W)."""
    import torch

    return torch.cat([x * weights[:, :, None, None] for weights in (average, maximum)], dim=1)


def _down(channels: int, blocks: int) -> list[torch.nn.Module]:
    from torch import nn

    layers = [*_convolved(3, channels, 7), nn.ReLU(inplace=True)]
    for ins in (channels, 2 * channels):
        layers += [*_convolved(ins, 2 * ins, 3, stride=2), nn.ReLU(inplace=True)]
    return layers + [_block_classes().Block(4 * channels) for _ in range(blocks)]


def _up(channels: int) -> list[torch.nn.Module]:
    from torch import nn

    layers: list[nn.Module] = []
    for ins in (4 * channels, 2 * channels):
        conv = nn.Conv2d(ins, ins // 2, 3, bias=False)
        norm = norms().ILN(ins // 2)
        layers += [
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.ReflectionPad2d(1),
            conv,
            norm,
            nn.ReLU(inplace=True),
        ]
    return [*layers, nn.ReflectionPad2d(3), nn.Conv2d(channels, 3, 7, bias=False), nn.Tanh()]


def _convolved(ins: int, outs: int, side: int, stride: int = 1) -> list[torch.nn.Module]:
    from torch import nn

    conv = nn.Conv2d(ins, outs, side, stride=stride, bias=False)
    return [nn.ReflectionPad2d(side // 2), conv, instance_norm(outs)]
