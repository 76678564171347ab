"""The U-Net of StarDist 2D as its config.json describes it, written down once: to list its layers and to run it.

Source: `StarDist2D._build` of stardist 0.9.2 and `unet_block` of csbdeep 0.8.2.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stainbridge.errors import WeightsCorrupt

Pair = tuple[int, int]


class Design(BaseModel):
    """What decides the network's shape, under the names of the official config.json; its other keys concern training."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    n_dim: Literal[2] = 2
    backbone: Literal["unet"] = "unet"
    n_channel_in: int = Field(ge=1, le=16)
    n_rays: int = Field(ge=3, le=1024)
    grid: Pair
    n_classes: int | None = Field(None, ge=1, le=1024)
    unet_n_depth: int = Field(3, ge=1, le=8)
    unet_kernel_size: Pair = (3, 3)
    unet_n_filter_base: int = Field(32, ge=1, le=1024)
    unet_n_conv_per_depth: int = Field(2, ge=1, le=8)
    unet_pool: Pair = (2, 2)
    unet_activation: str = "relu"
    unet_last_activation: str = "relu"
    unet_batch_norm: bool = False
    unet_expansion: float = Field(2.0, gt=0, le=8)
    unet_prefix: str = ""
    net_conv_after_unet: int = Field(128, ge=0, le=4096)

    @field_validator("grid")
    @classmethod
    def _powers_of_two(cls, grid: Pair) -> Pair:
        if any(step < 1 or step > 64 or step & (step - 1) for step in grid):
            raise ValueError("must be two powers of 2 up to 64")
        return grid

    @field_validator("unet_kernel_size", "unet_pool")
    @classmethod
    def _small(cls, sides: Pair) -> Pair:
        if not all(1 <= side <= 15 for side in sides):
            raise ValueError("must be two numbers from 1 to 15")
        return sides

    @classmethod
    def read(cls, path: Path) -> Design:
        """Read an official config.json; raises WeightsCorrupt, with the first key that does not fit."""
        try:
            return cls.model_validate(json.loads(path.read_text("utf-8")))
        except ValidationError as error:
            first = error.errors()[0]
            key = first["loc"][0] if first["loc"] else ""
            fault = f"{key}: {first['msg']}; found {first['input']!r}" if first["type"] != "missing" else f"no {key!r}"
        except (OSError, ValueError) as error:
            fault = str(error)
        raise WeightsCorrupt(f"{path} does not describe a StarDist2D network: {fault}.") from None

    @property
    def multiple_of(self) -> Pair:
        """What the sides of an input must be multiples of, y and x, in pixels."""
        down = [pool**self.unet_n_depth for pool in self.unet_pool]
        return down[0] * self.grid[0], down[1] * self.grid[1]

    @property
    def reach_px(self) -> int:
        """How far the network looks on each side, in pixels of its input."""
        ruler = _Ruler()
        walk(self, _Place(), ruler)
        return ruler.reach


@dataclass(frozen=True)
class Layer:
    """One convolution.

    Parameters
    ----------
    name : as in Keras; "conv2d" and "batch_normalization" with their place in the order, where Keras numbers them
    shape : kernel height and width, channels in, channels out
    activation : Keras name
    normalisation : name of the batch normalisation between the convolution and the activation, or empty
    """

    name: str
    shape: tuple[int, int, int, int]
    activation: str
    normalisation: str = ""


class Engine(Protocol):
    """What `walk` needs: the operations on whatever stands for a picture."""

    def conv(self, x: Any, name: str, filters: int, kernel: Pair, activation: str, normalised: bool) -> Any:
        """Convolve, normalise and activate."""

    def pool(self, x: Any, pool: Pair) -> Any:
        """Take the maximum of each cell."""

    def join(self, x: Any, pool: Pair, skip: Any) -> Any:
        """Repeat each cell, and put the channels of `skip` behind."""


def walk(design: Design, x: Any, engine: Engine) -> tuple[Any, Any]:
    """Run the network over `x` by means of `engine`; return probability and distances."""
    kernel, act, per_level = design.unet_kernel_size, design.unet_activation, design.unet_n_conv_per_depth

    def conv(x: Any, name: str, exponent: int, activation: str = act) -> Any:
        filters = int(design.unet_n_filter_base * design.unet_expansion**exponent)
        return engine.conv(x, design.unet_prefix + name, filters, kernel, activation, design.unet_batch_norm)

    x = _to_grid(design, x, engine)
    skips = []
    for level in range(design.unet_n_depth):
        for i in range(per_level):
            x = conv(x, f"down_level_{level}_no_{i}", level)
        skips.append(x)
        x = engine.pool(x, design.unet_pool)
    for i in range(per_level - 1):
        x = conv(x, f"middle_{i}", design.unet_n_depth)
    x = conv(x, f"middle_{per_level}", design.unet_n_depth - 1)
    for level in reversed(range(design.unet_n_depth)):
        x = engine.join(x, design.unet_pool, skips[level])
        for i in range(per_level - 1):
            x = conv(x, f"up_level_{level}_no_{i}", level)
        last = act if level else design.unet_last_activation
        x = conv(x, f"up_level_{level}_no_{per_level}", max(0, level - 1), last)
    if design.net_conv_after_unet:
        x = engine.conv(x, "features", design.net_conv_after_unet, kernel, act, False)
    prob = engine.conv(x, "prob", 1, (1, 1), "sigmoid", False)
    return prob, engine.conv(x, "dist", design.n_rays, (1, 1), "linear", False)


def layers(design: Design) -> list[Layer]:
    """Return the convolutions of the network, in the order in which they are made."""
    record = _Record()
    walk(design, design.n_channel_in, record)
    return record.layers


def _to_grid(design: Design, x: Any, engine: Engine) -> Any:
    reached, count = (1, 1), 0
    while reached != design.grid:
        step = (1 + (design.grid[0] > reached[0]), 1 + (design.grid[1] > reached[1]))
        for _ in range(design.unet_n_conv_per_depth):
            name = f"conv2d {count}"
            x = engine.conv(x, name, design.unet_n_filter_base, design.unet_kernel_size, design.unet_activation, False)
            count += 1
        x = engine.pool(x, step)
        reached = (reached[0] * step[0], reached[1] * step[1])
    return x


class _Record:
    """An engine on numbers of channels that writes down each layer."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self._normalisations = 0

    def conv(self, x: int, name: str, filters: int, kernel: Pair, activation: str, normalised: bool) -> int:
        norm = f"batch_normalization {self._normalisations}" if normalised else ""
        self._normalisations += normalised
        self.layers.append(Layer(name, (*kernel, x, filters), activation, norm))
        return filters

    def pool(self, x: int, pool: Pair) -> int:
        return x

    def join(self, x: int, pool: Pair, skip: int) -> int:
        return x + skip


@dataclass(frozen=True)
class _Place:
    """Pixels of the input per cell of a layer, and how far a cell looks beyond itself, in pixels of the input."""

    cell: Pair = (1, 1)
    reach: Pair = (0, 0)


class _Ruler:
    """An engine on places that keeps the farthest reach."""

    reach = 0

    def conv(self, x: _Place, name: str, filters: int, kernel: Pair, activation: str, normalised: bool) -> _Place:
        reach = tuple(r + side // 2 * cell for r, side, cell in zip(x.reach, kernel, x.cell, strict=True))
        self.reach = max(self.reach, *reach)
        return _Place(x.cell, (reach[0], reach[1]))

    def pool(self, x: _Place, pool: Pair) -> _Place:
        return _Place((x.cell[0] * pool[0], x.cell[1] * pool[1]), x.reach)

    def join(self, x: _Place, pool: Pair, skip: _Place) -> _Place:
        return _Place(skip.cell, x.reach)


def up_to(value: int, multiple: int) -> int:
    """Return the least multiple that is not below `value`."""
    return math.ceil(value / multiple) * multiple
