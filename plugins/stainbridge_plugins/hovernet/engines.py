"""Run the network on windows."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB
from stainbridge.errors import ConfigError, WeightsCorrupt
from stainbridge.torchkit import (
    AskedPrecision,
    Precision,
    autocast,
    import_torch,
    in_batches,
    inference_precision,
    resolve_device,
)
from stainbridge.torchkit.engines import Engine as EngineName
from stainbridge.torchkit.engines import engine

if TYPE_CHECKING:
    import torch

    from .network import Design

Maps: TypeAlias = NDArray[np.float32]
"""float32 (..., C, H, W). Channels: the type (where there are types), the probability of nucleus, horizontal and vertical distance."""


class Engine:
    """A network that is ready to run.

    Parameters
    ----------
    network : of `build` or `read_network`, in evaluation mode
    device : "cpu", "cuda" or "cuda:N"
    name : what runs it
    precision : of its arithmetic; "auto" takes the fastest that the device has
    batch_size : windows at once on a GPU; a CPU takes one

    Raises
    ------
    ConfigError
        If OpenVINO is asked to run on a GPU.
    DeviceUnavailable
        If this machine does not have the device or the precision.
    MissingExtra
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        device: str = "cpu",
        name: EngineName = "torch",
        precision: AskedPrecision = "fp32",
        batch_size: int = 16,
    ) -> None:
        torch = import_torch("hovernet")
        self.design: Design = network.design  # type: ignore[assignment]
        self._device = resolve_device(device)
        self.precision: Precision = inference_precision(precision, self._device)
        self._batch_size = batch_size if self._device.type == "cuda" else 1
        # Half precision is faster with channels last; single precision on a CPU is slower by far.
        self._layout = torch.contiguous_format if self.precision == "fp32" else torch.channels_last
        module = _with_maps(network).to(self._device, memory_format=self._layout)
        self._network = engine(module, name, device=self._device, precision=self.precision)
        # OpenVINO rounds by itself; what autocast rounds would become part of its model.
        self._mixed = name != "openvino"

    @property
    def on_gpu(self) -> bool:
        """Whether the network runs on a GPU."""
        return bool(self._device.type == "cuda")

    def maps(self, windows: RGB, *, file: Path | None = None) -> Maps:
        """Map uint8 (n, w, w, 3), sides as the design's `window_px`, to (n, C, m, m) with its `output_px`.

        Raises
        ------
        ConfigError, WeightsCorrupt
            If the network gives anything that is not finite: at half precision, or anyway. `file` is where it is from.
        """
        maps = in_batches(self._maps, windows, self._batch_size)
        if np.isfinite(maps).all():
            return maps
        if self.precision == "fp16":
            raise ConfigError(
                "HoVer-Net's numbers are too large for precision 'fp16'.\nSet precision = 'bf16' or 'fp32'."
            )
        where = repr(file.name) if file else "The network"
        raise WeightsCorrupt(f"{where} gives values that are not finite; its weights are no good.")

    def _maps(self, windows: RGB) -> Maps:
        torch = import_torch("hovernet")
        mixed = autocast(self._device, self.precision) if self._mixed else nullcontext()
        with torch.inference_mode(), mixed:
            pixels = torch.from_numpy(windows).to(self._device).permute(0, 3, 1, 2)
            maps: Maps = self._network(pixels.to(torch.float32, memory_format=self._layout)).cpu().numpy()
        return maps


def _with_maps(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network with its outputs as the channels of `Maps`, float32."""
    torch = import_torch("hovernet")

    class WithMaps(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            found = self.network(pixels)
            nucleus = torch.softmax(found["np"].float(), dim=1)[:, 1:]
            planes = [nucleus, found["hv"].float()]
            if "tp" in found:
                planes.insert(0, found["tp"].argmax(dim=1, keepdim=True).float())
            return torch.cat(planes, dim=1)

    return WithMaps().eval()
