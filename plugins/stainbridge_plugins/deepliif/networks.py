"""The two kinds of networks of DeepLIIF, under the names of the original.

Source: github.com/nadeemlab/DeepLIIF, deepliif/models/networks.py: `ResnetGenerator` with 9 blocks and `UnetGenerator` with 9
halvings, both with batch normalisation. Pictures are float (N, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TILE_PX = 512
"""Side of the tiles that the networks are trained with, and the only one that a segmentation takes here: it halves 9 times."""

_BLOCKS = 9
_HALVINGS = 9


def modality_generator(
    *, ngf: int = 64, dropout: bool = True, padding: str = "zero", own_statistics: bool = True
) -> torch.nn.Module:
    """Return a network that makes a virtual stain (G1..G4); it takes sides that are multiples of 4.

    Parameters
    ----------
    ngf : channels of the first convolution
    dropout : whether there are dropout layers, of one half, in the blocks
    padding : "zero", "reflect" or "replicate"
    own_statistics : normalise by each picture's own statistics; False by those in the weights
    """
    from torch import nn

    kinds = _kinds()
    pad = {"zero": nn.ZeroPad2d, "reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}[padding]

    def normed(convolution: nn.Module, channels: int) -> list[nn.Module]:
        return [convolution, kinds.Norm(channels, own_statistics), nn.ReLU(inplace=True)]

    def half_block() -> list[nn.Module]:
        # Padding by zeros is part of the convolution, so that there is no layer for it.
        before = [] if padding == "zero" else [pad(1)]
        return [*before, nn.Conv2d(4 * ngf, 4 * ngf, 3, padding=0 if before else 1, bias=False)]

    def block() -> nn.Module:
        drop = [nn.Dropout(0.5)] if dropout else []
        first = [*half_block(), kinds.Norm(4 * ngf, own_statistics), nn.ReLU(inplace=True), *drop]
        return kinds.Block([*first, *half_block(), kinds.Norm(4 * ngf, own_statistics)])

    layers = [pad(3), *normed(nn.Conv2d(3, ngf, 7, bias=False), ngf)]
    for ins in (ngf, 2 * ngf):
        layers += normed(nn.Conv2d(ins, 2 * ins, 3, stride=2, padding=1, bias=False), 2 * ins)
    layers += [block() for _ in range(_BLOCKS)]
    for ins in (4 * ngf, 2 * ngf):
        up = nn.ConvTranspose2d(ins, ins // 2, 3, stride=2, padding=1, output_padding=1, bias=False)
        layers += normed(up, ins // 2)
    network: nn.Module = kinds.Whole(nn.Sequential(*layers, pad(3), nn.Conv2d(ngf, 3, 7), nn.Tanh()))
    return network


def seg_generator(*, ngf: int = 64, dropout: bool = True, own_statistics: bool = True) -> torch.nn.Module:
    """Return a network that makes a segmentation (G51..G55); it takes sides that are multiples of 512.

    Parameters as in `modality_generator`.
    """
    from torch import nn

    kinds = _kinds()
    # Channels after each halving: twice as many three times, then no more.
    channels = [ngf * min(2**level, 8) for level in range(_HALVINGS)]

    def down(ins: int, outs: int) -> nn.Module:
        return nn.Conv2d(ins, outs, 4, stride=2, padding=1, bias=False)

    def up(ins: int, outs: int, bias: bool = False) -> nn.Module:
        return nn.ConvTranspose2d(ins, outs, 4, stride=2, padding=1, bias=bias)

    level: nn.Module | None = None
    for outer, inner in reversed(list(pairwise(channels))):
        way_down = [nn.LeakyReLU(0.2), down(outer, inner)]
        way_up = [nn.ReLU(), up(inner if level is None else 2 * inner, outer), kinds.Norm(outer, own_statistics)]
        if level is None:
            level = kinds.Level(nn.Sequential(*way_down, *way_up))
            continue
        # Dropout belongs to the levels that do not change the number of channels.
        drop = [nn.Dropout(0.5)] if dropout and outer == inner else []
        level = kinds.Level(nn.Sequential(*way_down, kinds.Norm(inner, own_statistics), level, *way_up, *drop))
    outermost = nn.Sequential(down(3, ngf), level, nn.ReLU(), up(2 * ngf, 3, bias=True), nn.Tanh())
    network: nn.Module = kinds.Whole(kinds.Whole(outermost))
    return network


def set_dropout(network: torch.nn.Module, on: bool) -> None:
    """Switch a network to evaluation, with its dropout layers on or off."""
    from torch import nn

    network.eval()
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.train(on)


@cache
def _kinds() -> Any:
    from types import SimpleNamespace

    import torch
    from torch import nn

    class Norm(nn.Module):
        """Batch normalisation of a network in use; what it counts in training, it has not.

        By the statistics of each picture, it is a group normalisation of one channel per group: what the original computes in a batch
        of one, and what does not depend on the batch.
        """

        def __init__(self, channels: int, own_statistics: bool) -> None:
            super().__init__()
            self.own_statistics = own_statistics
            self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.own_statistics:
                return nn.functional.group_norm(x, x.shape[1], self.weight, self.bias)
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    class Block(nn.Module):
        def __init__(self, layers: list[nn.Module]) -> None:
            super().__init__()
            self.conv_block = nn.Sequential(*layers)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv_block(x)

    class Whole(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

    class Level(Whole):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # What passes by has gone through the first activation: the original's works in place.
            x = self.model[0](x)
            return torch.cat([x, self.model[1:](x)], 1)

    return SimpleNamespace(Block=Block, Level=Level, Norm=Norm, Whole=Whole)
