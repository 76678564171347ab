"""A network in the form in which it runs fastest: the same function, other layers, weights in the type it computes with.

- A normalisation whose statistics are fixed is a scale and an offset: they go into the convolution before it.
- A convolution with a handful of output channels leaves most of a processor's or card's lanes empty. Four neighbouring pixels of the
  output become channels instead, of a kernel one wider and a stride of 2.
- Weights are cast once, and not at every call as under autocast, which besides pads in single precision.
"""

from __future__ import annotations

import copy
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from .normalisation import instance_norm

if TYPE_CHECKING:
    import torch

FEW_CHANNELS = 4


def prepared(
    network: torch.nn.Module,
    *,
    dtype: torch.dtype,
    device: torch.device,
    known: dict[int, torch.Tensor] | None = None,
) -> torch.nn.Module:
    """Return a network for inference that maps what `network` maps; `network` stays as it is, and tensors that fit are shared.

    Parameters
    ----------
    network : in single precision, a generator made of torch's layers and those of `normalisation`
    dtype : of the convolutions and products, and of the input; normalisations keep their statistics in single precision
    device : of the input
    known : casts of the network's tensors by their id, taken from here and put here: a second network of the same tensors shares them

    The output is float32 where the last layer is a tanh.
    """
    from torch import nn

    twin = copy.deepcopy(
        network, {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    ).eval()
    for module in list(twin.modules()):
        _fold(module)
    for module in list(twin.modules()):
        for name, child in module.named_children():
            setattr(module, name, _replaced(child))
    known = {} if known is None else known
    lasting = {id(tensor) for tensor in network.parameters()}
    for module in twin.modules():
        for name, tensor in module.named_parameters(recurse=False):
            found = known[id(tensor)] if id(tensor) in known else _cast(module, tensor, dtype, device)
            if id(tensor) in lasting:
                known[id(tensor)] = found
            # Set anew: to move the parameter itself would move it in the network that it is shared with.
            setattr(module, name, nn.Parameter(found, requires_grad=False))
        for name, tensor in module.named_buffers(recurse=False):
            setattr(module, name, tensor.to(device))
        if isinstance(module, nn.Linear):
            # Fixed statistics, which some layers take, stay in single precision.
            module.register_forward_pre_hook(lambda layer, args: (args[0].to(layer.weight.dtype),))
    return twin


def _fold(module: Any) -> None:
    """Put the fixed normalisations of a sequence into the convolutions before them."""
    from torch import nn

    if not isinstance(module, nn.Sequential):
        return
    norm = type(instance_norm(1))
    for number, (conv, after) in enumerate(pairwise(module)):
        if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(after, norm) and after.fixed is not None:
            module[number], module[number + 1] = _scaled(conv, after), nn.Identity()


def _scaled(conv: Any, norm: Any) -> Any:
    import torch

    mean, variance = (one.flatten() for one in norm.fixed)
    scale = torch.rsqrt(variance + norm.eps)
    # The output channels of a transposed convolution are its second axis.
    axis = 1 if isinstance(conv, torch.nn.ConvTranspose2d) else 0
    bias = torch.zeros_like(mean) if conv.bias is None else conv.bias.detach()
    shape = [-1 if place == axis else 1 for place in range(4)]
    return _with(conv, conv.weight.detach() * scale.reshape(shape), (bias - mean) * scale)


def _with(conv: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """Return a convolution of the same kind with other weights of the same shape."""
    from torch import nn

    found = copy.deepcopy(conv, {id(one): None for one in conv.parameters()})
    found.weight = nn.Parameter(weight, requires_grad=False)
    found.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return found


def _replaced(module: Any) -> Any:
    from torch import nn

    if isinstance(module, nn.Conv2d) and _packs(module):
        return _packed(module)
    if isinstance(module, nn.Tanh):
        return _single_precision_tanh()
    return module


def _packs(conv: Any) -> bool:
    side = conv.kernel_size[0]
    plain = (conv.stride, conv.dilation, conv.groups, conv.padding) == ((1, 1), (1, 1), 1, (0, 0))
    return bool(conv.out_channels <= FEW_CHANNELS and plain and conv.kernel_size == (side, side) and side > 1)


def _packed(conv: Any) -> Any:
    """Return layers that make the same map, of even sides, from four times the channels at half the resolution."""
    import torch
    from torch import nn

    outs, ins, side, _ = conv.weight.shape
    weight = conv.weight.new_zeros(outs, 2, 2, ins, side + 1, side + 1)
    for y in (0, 1):
        for x in (0, 1):
            weight[:, y, x, :, y : y + side, x : x + side] = conv.weight.detach()
    with torch.device("meta"):
        wide = nn.Conv2d(ins, 4 * outs, side + 1, stride=2, bias=conv.bias is not None)
    bias = None if conv.bias is None else conv.bias.detach().repeat_interleave(4)
    return nn.Sequential(_with(wide, weight.reshape(4 * outs, ins, side + 1, side + 1), bias), nn.PixelShuffle(2))


def _single_precision_tanh() -> Any:
    from torch import nn

    class Tanh(nn.Module):  # type: ignore[misc]
        """In bf16 the steps between values near 1 would be half a grey level."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float().tanh()

    return Tanh()


def _cast(layer: Any, tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a layer's tensor on a device, in the type it computes with if the layer multiplies by it."""
    import torch
    from torch import nn

    multiplies = isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    found = tensor.detach().to(device, dtype if multiplies else tensor.dtype)
    return found.contiguous(memory_format=torch.channels_last) if found.ndim == 4 else found
