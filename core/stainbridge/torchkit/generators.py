"""Translators whose work is done by a generator: what can be set, and how it is run on uint8 pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from ..errors import ConfigError, ContractViolation, DeviceUnavailable, WeightsUnavailable
from ..interfaces import Plugin, PluginConfig, Wants
from ..records import RGB
from .devices import (
    AskedPrecision,
    Precision,
    dtype_of,
    import_torch,
    in_batches,
    inference_precision,
    resolve_device,
)
from .engines import Engine, engine
from .normalisation import fix, gather
from .prepared import prepared

if TYPE_CHECKING:
    import torch

FILE = "generator.safetensors"
"""Name of a generator's file in a registry."""

MULTIPLE_OF = 4
"""Generators halve their input twice."""

LEAST_PX = 8
"""Least side of their input: of one of 4 px a single row would be left, which has nothing to be mirrored at its rim."""

SAMPLE_SIDE_PX, SAMPLE_WINDOWS = 512, 8


class GeneratorSettings(PluginConfig):
    """Scale, tiles and arithmetic of a generator."""

    path: Path | None = Field(None, description="a generator from a file of your own: .safetensors, .pth or .pt")
    mpp: float = Field(0.25, gt=0, description="micrometres per pixel that it was trained at")
    tile_px: int | None = Field(
        256, ge=MULTIPLE_OF, description="side of its tiles, halo included, as in training; from Python, None: any size"
    )
    halo_px: int = Field(16, ge=0, description="context of a tile that is cut off or blended, on each side")
    blend_px: int = Field(16, ge=0, description="on either side of a border between tiles, one fades into the other")
    statistics: Literal["tile", "slide"] = Field(
        "tile", description="normalise by each tile, as in training, or once by the whole picture: no seams"
    )
    precision: AskedPrecision = Field("auto", description="auto: bf16 or fp16 where the device computes in it")
    engine: Engine = Field("torch", description="compile and openvino take a while to start")
    batch_size: int = Field(8, ge=1, le=256, description="tiles at once on a GPU; a CPU takes one")


def opened(plugin: Plugin, read: Callable[[Path], torch.nn.Module]) -> Runner:
    """Return the runner of a translator's generator; a `path` in its settings goes over its weights.

    Parameters
    ----------
    plugin : its config is a `GeneratorSettings`; its `weights` become those that are used
    read : maps a file to a generator in single precision, on the CPU

    Raises
    ------
    WeightsUnavailable
        If it has none; says how to get one.
    ConfigError, DeviceUnavailable, MissingExtra
        As `resolve_device`, `inference_precision` and `engine`.
    """
    settings: GeneratorSettings = plugin.config
    who = f"translator {plugin.name!r}"
    import_torch(who)
    device = resolve_device(plugin.device)
    precision = inference_precision(settings.precision, device)
    if settings.path is not None:
        plugin.weights = {FILE: settings.path}
    if FILE not in plugin.weights:
        raise WeightsUnavailable(
            f"{who} has no generator, and none is published: nobody has released one that turns IHC into H&E.\n"
            f"Train one on your own slides: stainbridge train {plugin.name} --ihc FOLDER --he FOLDER -o run/, then --translator run/\n"
            "Or name a checkpoint: --set translator.path=FILE"
        )
    return Runner(read(plugin.weights[FILE]), settings, device=device, precision=precision, who=who)


class Runner:
    """Runs a generator on pictures; the same arithmetic as the originals' test scripts, apart from the precision.

    Parameters
    ----------
    network : in single precision, on the CPU; its first output is the picture in [-1, 1]. Has `reach_px`, and `size` where it takes
        pictures of one size only.
    settings : engine and batch size
    precision : that it computes in
    who : for messages
    known : as for `stainbridge.torchkit.prepared.prepared`
    """

    def __init__(
        self,
        network: torch.nn.Module,
        settings: GeneratorSettings,
        *,
        device: torch.device,
        precision: Precision,
        who: str,
        known: dict[int, torch.Tensor] | None = None,
    ) -> None:
        self.precision: Precision = precision
        self.batch_size = 1 if device.type == "cpu" else settings.batch_size
        self._source, self._settings, self._device, self._who = network, settings, device, who
        # OpenVINO takes a network in single precision and casts it itself.
        self._dtype = dtype_of("fp32" if settings.engine == "openvino" else precision)
        self._known = {} if known is None else known
        self._network = prepared(network, dtype=self._dtype, device=device, known=self._known)
        self._run = engine(self._network, settings.engine, device=device, precision=precision)

    @property
    def wants(self) -> Wants:
        """What a translator of this generator wants.

        Raises
        ------
        ConfigError
            If tile, halo and blending do not go together, or the generator takes another size.
        """
        own = self._settings
        if own.statistics == "slide":
            reach = -(-int(self._source.reach_px) // MULTIPLE_OF) * MULTIPLE_OF
            return Wants("ihc", own.mpp, halo=reach, multiple_of=MULTIPLE_OF)
        tile = own.tile_px
        if self._size is not None:
            if "tile_px" in own.model_fields_set and tile != self._size:
                raise ConfigError(
                    f"{self._who} was trained on tiles of {self._size} px and takes no others; found tile_px = {tile}.\n"
                    "Leave tile_px out, or set statistics = 'slide', which takes any size."
                )
            tile = self._size
        return Wants("ihc", own.mpp, tile, own.halo_px, MULTIPLE_OF, own.blend_px)

    def __call__(self, batch: RGB) -> RGB:
        """Translate uint8 (N, H, W, 3) to the same shape; values are cut to whole grey levels, as the originals do.

        What a side lacks to `LEAST_PX` is mirrored, and cut off again.

        Raises
        ------
        ContractViolation
            If the generator returns NaN or infinity.
        DeviceUnavailable
            If a single picture does not fit into the memory of the device.
        """
        return in_batches(self._translated, batch, self.batch_size)

    def fixed(self, sample: RGB) -> Runner:
        """Return a runner whose generator normalises by the statistics of a sample, uint8 (N, H, W, 3), whatever it is shown.

        They are gathered from 8 windows of 512 px at most, spread evenly, and from fewer where memory runs out.
        """
        torch = import_torch(self._who)
        for count in (SAMPLE_WINDOWS, SAMPLE_WINDOWS // 2, SAMPLE_WINDOWS // 4, 1):
            windows = _windows(sample, count * SAMPLE_SIDE_PX**2, size=self._size)
            # Handled outside `except`, where the traceback would keep the tensors of the failed attempt alive.
            try:
                found = gather(self._network, self._signal(windows))
            except torch.OutOfMemoryError:
                found = None
            if found is not None:
                statistics = {name: tensor.to("cpu", torch.float32) for name, tensor in found.items()}
                return self._with(fix(self._source, statistics))
            torch.cuda.empty_cache()
        raise DeviceUnavailable(
            f"{self._who} cannot gather the statistics of one window of {SAMPLE_SIDE_PX} px: it does not fit into the memory of the "
            "device.\nSet statistics = 'tile', close what else uses the device, or pass --device cpu."
        )

    @property
    def _size(self) -> int | None:
        size: int | None = getattr(self._source, "size", None)
        return size

    def _with(self, network: torch.nn.Module) -> Runner:
        network.size = None  # the layers that take one size only are among those that are fixed
        place = {"device": self._device, "precision": self.precision, "who": self._who}
        return Runner(network, self._settings, **place, known=self._known)

    def _signal(self, batch: RGB) -> Any:
        torch = import_torch(self._who)
        pixels = torch.tensor(np.ascontiguousarray(batch)).to(self._device)
        # Permuted, the pixels are in channels_last as they lie.
        return pixels.permute(0, 3, 1, 2).float().div_(255.0).sub_(0.5).div_(0.5).to(self._dtype)

    def _translated(self, batch: RGB) -> RGB:
        torch = import_torch(self._who)
        if self._size not in (None, *batch.shape[1:3]) or (self._size and batch.shape[1] != batch.shape[2]):
            raise ContractViolation(
                f"{self._who} takes pictures of {self._size} x {self._size} px; found {batch.shape[1]} x {batch.shape[2]}.\n"
                "With statistics = 'slide' it takes any size once it was calibrated to the picture."
            )
        height, width = batch.shape[1:3]
        if min(height, width) < LEAST_PX:
            batch = _mirrored(batch, max(height, LEAST_PX), max(width, LEAST_PX))
        with torch.inference_mode():
            found = self._run(self._signal(batch))
            if not bool(torch.isfinite(found).all()):
                raise ContractViolation(
                    f"{self._who} gave values that are not finite in {self.precision}.\n{self._advice}"
                )
            levels = found.float().add(1.0).div(2.0).mul(255.0).to(torch.uint8)
            translated: RGB = levels.permute(0, 2, 3, 1)[:, :height, :width].contiguous().cpu().numpy()
        return translated

    @property
    def _advice(self) -> str:
        if self.precision == "fp32":
            return "Its weights are of no use: train it anew, or take an earlier checkpoint."
        return "Set precision = 'fp32': --set translator.precision=fp32"


def _windows(sample: RGB, budget_px: int, *, size: int | None) -> RGB:
    """Return windows of uint8 (N, H, W, 3) of `budget_px` together at most, of sides that a generator takes.

    The sample itself where it fits the budget, else windows spread evenly over it. What a window lacks is mirrored.
    """
    count, height, width = sample.shape[:3]
    if size is None and count * height * width <= budget_px:
        return _mirrored(sample, *(max(LEAST_PX, -(-side // MULTIPLE_OF) * MULTIPLE_OF) for side in (height, width)))
    side = size or SAMPLE_SIDE_PX
    places = [(index, y, x) for index in range(count) for y in _spread(height, side) for x in _spread(width, side)]
    chosen = np.linspace(0, len(places) - 1, min(len(places), max(1, budget_px // side**2))).round().astype(int)
    cut = (sample[index, y : y + side, x : x + side][None] for index, y, x in (places[one] for one in chosen))
    return np.concatenate([_mirrored(window, side, side) for window in cut])


def _spread(length: int, side: int) -> Iterator[int]:
    """Yield where windows of `side` begin that cover `length` evenly."""
    yield from np.linspace(0, max(0, length - side), -(-length // side)).astype(int).tolist()


def _mirrored(batch: RGB, height: int, width: int) -> RGB:
    room = ((0, 0), (0, height - batch.shape[1]), (0, width - batch.shape[2]), (0, 0))
    return np.pad(batch, room, mode="symmetric")
