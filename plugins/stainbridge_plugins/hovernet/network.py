"""The HoVer-Net network in torch, with the names of the original's state dict.

Source: Graham et al., Medical Image Analysis 58 (2019), and github.com/vqdang/hover_net, models/hovernet. Names of layers hold
slashes, as in the original's checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from stainbridge.errors import ConfigError
from stainbridge.torchkit import import_torch

if TYPE_CHECKING:
    import torch

Mode: TypeAlias = Literal["original", "fast"]
"""Kernels of 5 px and windows of 270 px, or kernels of 3 px and windows of 256 px."""

_UNITS = {"d0": 3, "d1": 4, "d2": 6, "d3": 3}
_MIDDLE = {"d0": 64, "d1": 128, "d2": 256, "d3": 512}
_CROPS = {"original": (184, 72), "fast": (92, 36)}
"""Pixels that the decoders cut off the height and width of d0 and d1."""
_GROWTH = 32
_GROUPS = 4


@dataclass(frozen=True)
class Design:
    """Which HoVer-Net it is.

    Parameters
    ----------
    mode : "original" or "fast"
    types : types of nuclei, background included; 0 for a network without types
    slimming : the original's channels are divided by it: 1, 2, 4 or 8
    """

    mode: Mode
    types: int = 0
    slimming: int = 1

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"A mode of HoVer-Net is one of {', '.join(get_args(Mode))}; found {self.mode!r}.")
        if self.types < 0 or self.types == 1:
            raise ConfigError(f"HoVer-Net has 2 or more types, background included, or 0 for none; found {self.types}.")
        if self.slimming not in (1, 2, 4, 8):
            raise ConfigError(f"The channels of HoVer-Net are divided by 1, 2, 4 or 8; found {self.slimming}.")

    @property
    def kernel_px(self) -> int:
        """Side of the decoders' kernels."""
        return 5 if self.mode == "original" else 3

    @property
    def window_px(self) -> int:
        """Side of the picture that the network is given."""
        return 270 if self.mode == "original" else 256

    @property
    def output_px(self) -> int:
        """Side of the maps that it returns, from the middle of the window."""
        return 80 if self.mode == "original" else 164

    def output_of(self, side: int) -> int:
        """Return the side of the maps for a picture of `side` pixels; raises ConfigError where the network does not take it."""
        out = side - self.window_px + self.output_px
        if side % 8 != self.window_px % 8 or out < 8:
            raise ConfigError(
                f"HoVer-Net in mode {self.mode!r} takes pictures of {self.window_px} px, or 8 px more or less and so on; "
                f"found {side} px."
            )
        return out

    @property
    def branches(self) -> dict[str, int]:
        """Channels of each decoder's output, by its name."""
        return ({"tp": self.types} if self.types else {}) | {"np": 2, "hv": 2}


def build(design: Design) -> torch.nn.Module:
    """Return the network with fresh weights (Kaiming normal over the outputs, as the original starts).

    It maps float32 (N, 3, H, W), RGB of 0..255, to a dict of float (N, C, h, w): "tp" (logits of the types) where it has types,
    "np" (logits of background and nucleus) and "hv" (horizontal and vertical distance, about -1..1). Sides of 270 or 256 give
    80 or 164; 8 pixels more give 8 more.

    Raises
    ------
    MissingExtra
        If torch is missing or too old.
    """
    nn = import_torch("hovernet").nn

    class HoVerNet(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            for name, part in _parts(nn, design).items():
                self.add_module(name, part)
            self.design = design
            self.frozen = False

        def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            return _run(self, pixels)

    network: torch.nn.Module = HoVerNet()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _parts(nn: Any, design: Design) -> dict[str, Any]:
    """Return the modules in the order of the original's state dict."""
    first = 64 // design.slimming
    parts = {"conv0": _chain(nn, ("/", _conv(nn, 3, first, 7, same=design.mode == "fast")), *_norm(nn, "bn", first))}
    channels = first
    for level, units in _UNITS.items():
        middle = _MIDDLE[level] // design.slimming
        parts[level] = _residual(nn, channels, middle, units=units, stride=1 if level == "d0" else 2)
        channels = 4 * middle
    parts["conv_bot"] = _conv(nn, channels, channels // 2, 1)
    parts["decoder"] = nn.ModuleDict({name: _decoder(nn, design, out) for name, out in design.branches.items()})
    parts["upsample2x"] = nn.Module()
    parts["upsample2x"].register_buffer("unpool_mat", import_torch("hovernet").ones(2, 2))
    return parts


def _chain(nn: Any, *layers: tuple[str, Any]) -> Any:
    chain = nn.Sequential()
    for name, layer in layers:
        chain.add_module(name, layer)
    return chain


def _conv(nn: Any, before: int, after: int, side: int, *, same: bool = False, **options: Any) -> Any:
    return nn.Conv2d(before, after, side, padding=side // 2 if same else 0, bias=False, **options)


def _norm(nn: Any, name: str, channels: int) -> tuple[tuple[str, Any], tuple[str, Any]]:
    activation = name.removesuffix("bn") + "relu"
    return (name, nn.BatchNorm2d(channels, eps=1e-5)), (activation, nn.ReLU(inplace=True))


def _residual(nn: Any, before: int, middle: int, *, units: int, stride: int) -> Any:
    chain = [_residual_unit(nn, before, middle, stride=stride, first=True)]
    chain += [_residual_unit(nn, 4 * middle, middle, stride=1, first=False) for _ in range(units - 1)]
    return nn.ModuleDict(
        {
            "units": nn.ModuleList(chain),
            "shortcut": _conv(nn, before, 4 * middle, 1, stride=stride),
            "blk_bna": _chain(nn, *_norm(nn, "bn", 4 * middle)),
        }
    )


def _residual_unit(nn: Any, before: int, middle: int, *, stride: int, first: bool) -> Any:
    # TensorFlow's "same" at a stride of 2 pads behind only; all sides that the network takes are even there.
    pad = (("conv2/pad", nn.ZeroPad2d((0, 1, 0, 1))),) if stride == 2 else ()
    return _chain(
        nn,
        *(() if first else _norm(nn, "preact/bn", before)),
        ("conv1", _conv(nn, before, middle, 1)),
        *_norm(nn, "conv1/bn", middle),
        *pad,
        ("conv2", _conv(nn, middle, middle, 3, same=stride == 1, stride=stride)),
        *_norm(nn, "conv2/bn", middle),
        ("conv3", _conv(nn, middle, 4 * middle, 1)),
    )


def _decoder(nn: Any, design: Design, out: int) -> Any:
    side, wide = design.kernel_px, 1024 // design.slimming
    stages = {}
    for name, before, units in (("u3", wide, 8), ("u2", wide // 2, 4)):
        after = before // 4
        dense, grown = _dense(nn, after, units=units, side=side, slimming=design.slimming)
        conva = ("conva", _conv(nn, before, after, side))
        stages[name] = nn.ModuleDict([conva, ("dense", dense), ("convf", _conv(nn, grown, grown, 1))])
    last = wide // 16
    stages["u1"] = _chain(nn, ("conva", _conv(nn, wide // 4, last, side, same=True)))
    stages["u0"] = _chain(nn, *_norm(nn, "bn", last), ("conv", nn.Conv2d(last, out, 1)))
    return nn.ModuleDict(stages)


def _dense(nn: Any, channels: int, *, units: int, side: int, slimming: int) -> tuple[Any, int]:
    middle, growth = 4 * _GROWTH // slimming, _GROWTH // slimming
    chain = []
    for _ in range(units):
        chain.append(
            _chain(
                nn,
                *_norm(nn, "preact_bna/bn", channels),
                ("conv1", _conv(nn, channels, middle, 1)),
                *_norm(nn, "conv1/bn", middle),
                ("conv2", _conv(nn, middle, growth, side, groups=_GROUPS)),
            )
        )
        channels += growth
    end = _chain(nn, *_norm(nn, "bn", channels))
    return nn.ModuleDict({"units": nn.ModuleList(chain), "blk_bna": end}), channels


def _run(network: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    skips = []
    x = network.conv0(pixels / 255.0)
    for level in _UNITS:
        x = _through_frozen(network, level, x) if network.frozen else _through_residual(getattr(network, level), x)
        skips.append(x)
    shallow, middle, deep, deepest = skips
    x = network.conv_bot(deepest)
    crops = _CROPS[network.design.mode]
    skips = [_cropped(shallow, crops[0]), _cropped(middle, crops[1]), deep]
    return {
        name: _through_decoder(decoder, x, skips, network.upsample2x.unpool_mat)
        for name, decoder in network.decoder.items()
    }


def _through_frozen(network: Any, level: str, x: torch.Tensor) -> torch.Tensor:
    """Run a level of the encoder that does not learn: of d0 the shortcut goes on learning, and by it conv0, as in the original."""
    import torch

    block = getattr(network, level)
    if level == "d0":
        return _through_residual(block, x, learning=False)
    with torch.no_grad():
        return _through_residual(block, x)


def _through_residual(block: Any, x: torch.Tensor, *, learning: bool = True) -> torch.Tensor:
    import torch

    total = block["shortcut"](x)
    for unit in block["units"]:
        if learning:
            x = unit(x)
        else:
            with torch.no_grad():
                x = unit(x)
        total = x = total + x
    activated: torch.Tensor = block["blk_bna"](total)
    return activated


def _through_decoder(decoder: Any, x: torch.Tensor, skips: list[torch.Tensor], pattern: torch.Tensor) -> torch.Tensor:
    shallow, middle, deep = skips
    for stage, skip in ((decoder["u3"], deep), (decoder["u2"], middle)):
        x = stage["convf"](_through_dense(stage["dense"], stage["conva"](_doubled(x, pattern) + skip)))
    out: torch.Tensor = decoder["u0"](decoder["u1"](_doubled(x, pattern) + shallow))
    return out


def _through_dense(block: Any, x: torch.Tensor) -> torch.Tensor:
    import torch

    for unit in block["units"]:
        new = unit(x)
        x = torch.cat([_cropped(x, x.shape[-1] - new.shape[-1]), new], dim=1)
    activated: torch.Tensor = block["blk_bna"](x)
    return activated


def _doubled(x: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """Make 2 x 2 pixels of each, times `pattern`, which is all ones in published files."""
    import torch

    wide = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    # In the precision of the map: a product with float32 would leave mixed precision.
    doubled: torch.Tensor = wide * pattern.to(x.dtype).repeat(x.shape[-2:])
    return doubled


def _cropped(x: torch.Tensor, total: int) -> torch.Tensor:
    """Cut `total` pixels of height and of width, the odd one behind."""
    before = total // 2
    after = total - before
    return x[..., before : x.shape[-2] - after, before : x.shape[-1] - after]
