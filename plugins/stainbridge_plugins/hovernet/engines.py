"""Run the network on windows: by torch, or on a CPU by OpenVINO."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB
from stainbridge.errors import ConfigError, DeviceUnavailable, MissingExtra, WeightsCorrupt
from stainbridge.torchkit import (
    AskedPrecision,
    Precision,
    autocast,
    import_torch,
    in_batches,
    inference_precision,
    resolve_device,
)

if TYPE_CHECKING:
    import torch

    from .network import Design

EngineName: TypeAlias = Literal["torch", "openvino"]
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
        If OpenVINO is asked to compute in fp16.
    DeviceUnavailable
        If this machine does not have the device or the precision, or OpenVINO is asked to run on a GPU.
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
        chosen = resolve_device(device)
        self.design: Design = network.design  # type: ignore[assignment]
        self.precision: Precision = inference_precision(precision, chosen)
        self._batch_size = batch_size if chosen.type == "cuda" else 1
        start = _in_torch if name == "torch" else _in_openvino
        self._run = start(_with_maps(network), chosen, self.precision)

    def maps(self, windows: RGB, *, file: Path | None = None) -> Maps:
        """Map uint8 (n, w, w, 3), sides as the design's `window_px`, to (n, C, m, m) with its `output_px`.

        Raises
        ------
        ConfigError, WeightsCorrupt
            If the network gives anything that is not finite: at half precision, or anyway. `file` is where it is from.
        """
        maps = in_batches(self._run, windows, self._batch_size)
        if np.isfinite(maps).all():
            return maps
        if self.precision == "fp16":
            raise ConfigError(
                "HoVer-Net's numbers are too large for precision 'fp16'.\nSet precision = 'bf16' or 'fp32'."
            )
        where = repr(file.name) if file else "The network"
        raise WeightsCorrupt(f"{where} gives values that are not finite; its weights are no good.")


def _with_maps(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network from uint8 (n, h, w, 3) to the channels of `Maps`, float32."""
    torch = import_torch("hovernet")

    class WithMaps(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            found = self.network(windows.permute(0, 3, 1, 2).float())
            nucleus = torch.softmax(found["np"].float(), dim=1)[:, 1:]
            planes = [nucleus, found["hv"].float()]
            if "tp" in found:
                planes.insert(0, found["tp"].argmax(dim=1, keepdim=True).float())
            return torch.cat(planes, dim=1)

    return WithMaps().eval()


def _in_torch(module: torch.nn.Module, device: torch.device, precision: Precision) -> Callable[[RGB], Maps]:
    torch = import_torch("hovernet")
    # Half precision is faster with channels last; single precision on a CPU is slower by far.
    layout = torch.contiguous_format if precision == "fp32" else torch.channels_last
    module = module.to(device, memory_format=layout)

    def run(windows: RGB) -> Maps:
        with torch.inference_mode(), autocast(device, precision):
            maps: Maps = module(torch.from_numpy(windows).to(device)).cpu().numpy()
        return maps

    return run


def _in_openvino(module: torch.nn.Module, device: torch.device, precision: Precision) -> Callable[[RGB], Maps]:
    if device.type != "cpu":
        raise DeviceUnavailable(
            f"engine 'openvino' runs HoVer-Net on a CPU; the device is {str(device)!r}.\n"
            "Set engine = 'torch', or pass --device cpu."
        )
    try:
        import openvino
    except ImportError:
        raise MissingExtra.of("hovernet with engine 'openvino'", "openvino", "openvino") from None
    torch = import_torch("hovernet")
    options = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(_converted(module), "CPU", options)

    def run(windows: RGB) -> Maps:
        return np.concatenate([compiled(window[None])[0] for window in windows])

    return run


def _converted(module: Any) -> Any:
    """Return the module as an OpenVINO model for one window at a time.

    Through the frontend and not `openvino.convert_model`, which reports each conversion to its makers where that was agreed to.
    """
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    side = module.network.design.window_px
    example = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        # torch deprecates the format that the frontend takes.
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(module, example, check_trace=False)
        decoder = TorchScriptPythonDecoder(traced)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    model.reshape([1, side, side, 3])
    return model
