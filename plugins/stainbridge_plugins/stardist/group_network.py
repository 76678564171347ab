"""The other StarDist network in torch: `UNetStar` of stardist_pytorch, with group normalisation, on every pixel.

Source: github.com/ASHISRAVINDRAN/stardist_pytorch, unet/unet_model.py and unet/unet_parts_gn.py; distances as in StarDist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stainbridge.errors import WeightsCorrupt

if TYPE_CHECKING:
    import torch

MULTIPLE_OF = (8, 8)
REACH_PX = 48
"""How far its convolutions look. Group normalisation looks over the whole window, so a nucleus depends on it a little."""

_CHANNELS_PER_GROUP = 8
_BLOCKS = {  # channels in and out of each pair of convolutions
    "inc.conv": (0, 32),
    "down1.mpconv.1": (32, 64),
    "down2.mpconv.1": (64, 128),
    "down3.mpconv.1": (128, 128),
    "up1.conv": (256, 64),
    "up2.conv": (128, 32),
    "up3.conv": (64, 32),
}


class GroupUNet:
    """The network on one device.

    Parameters
    ----------
    state : tensors by name, as its authors saved them
    device : where it runs
    file : name for messages

    Raises
    ------
    WeightsCorrupt
        If a tensor is missing, too many or of another shape; names the first.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], device: torch.device, *, file: str) -> None:
        channels, rays = _sides(state, file)
        wanted = _shapes(channels, rays)
        for name, shape in wanted.items():
            if name not in state:
                raise _unfit(file, f"it has no tensor {name!r}")
            if tuple(state[name].shape) != shape:
                raise _unfit(file, f"{name!r} is {tuple(state[name].shape)} instead of {shape}")
        extra = sorted(state.keys() - wanted.keys())
        if extra:
            raise _unfit(file, f"it has a tensor {extra[0]!r}, which the network has not")
        self.channels, self.rays = channels, rays
        self._state = {name: tensor.float().to(device) for name, tensor in state.items()}

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map float (N, C, H, W), sides multiples of 8, to probability (N, 1, H, W) and distances (N, rays, H, W)."""
        import torch

        down = [self._block("inc.conv", x)]
        for name in ("down1.mpconv.1", "down2.mpconv.1", "down3.mpconv.1"):
            down.append(self._block(name, torch.nn.functional.max_pool2d(down[-1], 2)))
        x = down.pop()
        for name in ("up1.conv", "up2.conv", "up3.conv"):
            wide = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
            x = self._block(name, torch.cat([down.pop(), wide], dim=1))
        x = self._conv("features", x)
        return torch.sigmoid(self._conv("out_prob.conv", x)), torch.relu(self._conv("out_ray.conv", x))

    def _block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        import torch

        for conv, norm in ((0, 1), (3, 4)):
            x = self._conv(f"{name}.conv.{conv}", x)
            weight, bias = (self._state[f"{name}.conv.{norm}.{part}"] for part in ("weight", "bias"))
            x = torch.nn.functional.group_norm(x, x.shape[1] // _CHANNELS_PER_GROUP, weight, bias)
            x = torch.nn.functional.elu_(x)
        return x

    def _conv(self, name: str, x: torch.Tensor) -> torch.Tensor:
        import torch

        weight, bias = self._state[f"{name}.weight"], self._state[f"{name}.bias"]
        return torch.nn.functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def _sides(state: Mapping[str, torch.Tensor], file: str) -> tuple[int, int]:
    """Return the channels of the input and the number of rays."""
    for name in ("inc.conv.conv.0.weight", "out_ray.conv.weight"):
        if name not in state or state[name].ndim != 4:
            found = ", ".join(sorted(state)[:3])
            raise _unfit(file, f"it has no kernel {name!r}; it begins with {found}")
    return int(state["inc.conv.conv.0.weight"].shape[1]), int(state["out_ray.conv.weight"].shape[0])


def _shapes(channels: int, rays: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for block, (ingoing, out) in _BLOCKS.items():
        for conv, before in ((0, ingoing or channels), (3, out)):
            shapes[f"{block}.conv.{conv}.weight"] = (out, before, 3, 3)
        shapes |= {
            f"{block}.conv.{part}": (out,) for part in ("0.bias", "3.bias", "1.weight", "1.bias", "4.weight", "4.bias")
        }
    heads = {"features": (128, 32, 3), "out_ray.conv": (rays, 128, 1), "out_prob.conv": (1, 128, 1)}
    for name, (out, before, side) in heads.items():
        shapes |= {f"{name}.weight": (out, before, side, side), f"{name}.bias": (out,)}
    return shapes


def _unfit(file: str, fault: str) -> WeightsCorrupt:
    return WeightsCorrupt(
        f"{file!r} is not the PyTorch StarDist of stardist_pytorch: {fault}.\n"
        "Other models are taken as a folder with config.json and a Keras .h5."
    )
