"""The networks of CycleGAN, under the names of the original.

Source: github.com/junyanz/pytorch-CycleGAN-and-pix2pix, models/networks.py: `resnet_9blocks` and the 70 x 70 `basic` discriminator,
both with instance normalisation. Pictures are float (N, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from stainbridge.torchkit.normalisation import instance_norm

if TYPE_CHECKING:
    import torch


def generator(*, channels: int = 64, blocks: int = 9, dropout: bool = False) -> torch.nn.Module:
    """Return a generator: pictures to pictures of the same size, in [-1, 1].

    Parameters
    ----------
    channels : of its first convolution; four times as many in its blocks
    blocks : residual blocks, 9 or 6 in the original
    dropout : one half, inside each block, in training only

    Its `reach_px` is how far a pixel of the output looks where the statistics are fixed, from a tile that begins at a multiple of 4.
    """
    from torch import nn

    layers: list[nn.Module] = [nn.ReflectionPad2d(3), *_convolved(3, channels, 7)]
    for ins in (channels, 2 * channels):
        layers += _convolved(ins, 2 * ins, 3, stride=2, padding=1)
    layers += [_classes().Block(4 * channels, dropout) for _ in range(blocks)]
    for ins in (4 * channels, 2 * channels):
        up = nn.ConvTranspose2d(ins, ins // 2, 3, stride=2, padding=1, output_padding=1)
        layers += [up, instance_norm(ins // 2), nn.ReLU(inplace=True)]
    layers += [nn.ReflectionPad2d(3), nn.Conv2d(channels, 3, 7), nn.Tanh()]
    network: nn.Module = _classes().Generator(layers)
    # Two convolutions of a block at a quarter of the resolution are 8 px; the layers around the blocks are 12.
    network.reach_px = 8 * blocks + 12
    return network


def discriminator(*, channels: int = 64, layers: int = 3) -> torch.nn.Module:
    """Return a discriminator: pictures to one value per patch, float (N, 1, h, w), without a sigmoid.

    Parameters
    ----------
    channels : of its first convolution
    layers : convolutions of stride 2; 3 make patches of 70 x 70 px
    """
    from torch import nn

    model: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
    for level in range(1, layers + 1):
        ins, outs = (channels * min(2**power, 8) for power in (level - 1, level))
        conv = nn.Conv2d(ins, outs, 4, stride=2 if level < layers else 1, padding=1)
        model += [conv, instance_norm(outs), nn.LeakyReLU(0.2, inplace=True)]
    model.append(nn.Conv2d(channels * min(2**layers, 8), 1, 4, padding=1))
    network: nn.Module = _classes().Discriminator(model)
    return network


def initialise(network: torch.nn.Module, seed: int) -> None:
    """Draw the weights of every convolution from N(0, 0.02) and set the biases to 0, the same for the same seed.

    Drawn on the CPU, so that they do not depend on the device.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if name.endswith("bias"):
                tensor.zero_()
            else:
                tensor.copy_(torch.empty(tensor.shape).normal_(0.0, 0.02, generator=draw))


def _convolved(ins: int, outs: int, side: int, **kwargs: int) -> list[torch.nn.Module]:
    from torch import nn

    return [nn.Conv2d(ins, outs, side, **kwargs), instance_norm(outs), nn.ReLU(inplace=True)]


@cache
def _classes() -> Any:
    from types import SimpleNamespace

    from torch import nn

    class Generator(nn.Module):
        def __init__(self, layers: list[nn.Module]) -> None:
            super().__init__()
            self.model = nn.Sequential(*layers)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

    class Discriminator(Generator):
        pass

    class Block(nn.Module):
        def __init__(self, channels: int, dropout: bool) -> None:
            super().__init__()
            first = [nn.ReflectionPad2d(1), *_convolved(channels, channels, 3)]
            second = [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), instance_norm(channels)]
            self.conv_block = nn.Sequential(*first, *([nn.Dropout(0.5)] if dropout else []), *second)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv_block(x)

    return SimpleNamespace(Generator=Generator, Discriminator=Discriminator, Block=Block)
