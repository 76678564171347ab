"""Which network a file holds, whether the installed cellpose can run it, and what every network can do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stainbridge import LabelMap
from stainbridge.errors import MissingExtra, PluginUnavailable, WeightsCorrupt, WeightsUnavailable
from stainbridge.weights import load_state_dict

from .drawing import Drawing
from .mxnet import is_mxnet, read_arrays

if TYPE_CHECKING:
    import torch


class Network(Protocol):
    """A loaded network of either generation."""

    channels: int
    """Planes that it sees."""
    diameter_px: float
    """Diameter of a nucleus at which it was trained, in its own pixels."""

    def label(self, planes: NDArray[np.float32], drawing: Drawing) -> LabelMap:
        """Return int32 (N, H, W) for float32 (N, H, W, C) with about 0 for background and 1 for nuclei; ids may have gaps."""
        ...


def load(path: Path, *, device: str, diameter_px: float | None) -> Network:
    """Return the network in `path`, run by the installed cellpose.

    Nothing is downloaded and nothing unpickled: cellpose is only given a file that was found and read.

    Raises
    ------
    MissingExtra
        If cellpose is not installed.
    WeightsUnavailable, WeightsCorrupt
        If the file is not there, or no network of cellpose.
    PluginUnavailable
        If it is a network of another generation than the installed cellpose.
    """
    if not path.is_file():
        raise WeightsUnavailable(f"There is no weight file {path}.\nSee: stainbridge models fetch, models where")
    third = _is_third_generation()
    if is_mxnet(path):
        _require(third, path, network="3.x (an MXNet file of January 2020)", pin="cellpose>=3.1,<4")
        return _third(_renamed(path), path, device, diameter_px)
    state = load_state_dict(path)
    if _is_transformer(state):
        _require(not third, path, network="4.x", pin="cellpose>=4")
        del state
        from .fourth import Fourth

        return Fourth(path, device=device)
    if "output.2.weight" not in state:
        raise WeightsCorrupt(
            f"{path.name!r} holds no network of cellpose: it has neither 'output.2.weight' (3.x) nor 'W2' (4.x).\n"
            f"Found {len(state)} tensors: {', '.join(list(state)[:3])}.\nPath: {path}"
        )
    _require(third, path, network="3.x or older", pin="cellpose>=3.1,<4")
    return _third(state, path, device, diameter_px)


def _third(state: Mapping[str, Any], path: Path, device: str, diameter_px: float | None) -> Network:
    from .third import Third

    return Third(state, file=path.name, device=device, diameter_px=diameter_px)


def _is_third_generation() -> bool:
    """Return whether the installed cellpose has the residual U-Net of 1.x to 3.x; its presence says so, not a number."""
    try:
        return importlib.util.find_spec("cellpose.resnet_torch") is not None
    except ModuleNotFoundError:
        raise MissingExtra.of("Segmenter 'cellpose'", "cellpose", "cellpose") from None


def _is_transformer(state: Mapping[str, Any]) -> bool:
    # A file that was saved from several devices has every name behind this prefix.
    return "W2" in state or "module.W2" in state


def _require(fits: bool, path: Path, *, network: str, pin: str) -> None:
    if fits:
        return
    raise PluginUnavailable(
        f"{path.name!r} is a network of cellpose {network}; installed is cellpose {_installed()}, which cannot run it.\n"
        f"The two cannot be installed together. In an environment of its own, run: pip install '{pin}'"
    )


def _installed() -> str:
    try:
        return importlib.metadata.version("cellpose")
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _renamed(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of January 2020 under the names that they have in torch.

    That network is the one of today, layer for layer; Gluon numbers blocks where torch names them, and calls the weight and bias
    of a batch normalisation gamma and beta.
    """
    import torch

    return {torch_name(name): torch.from_numpy(array) for name, array in read_arrays(path).items()}


def torch_name(name: str) -> str:
    """Return the name in `cellpose.resnet_torch.CPnet` of a parameter that Gluon calls `name`."""
    name = re.sub(r"^downsample\.down\.(\d)\.(?:conv\.(\d))?", _named("downsample.down.res_down"), name)
    name = re.sub(r"^upsample\.up\.(\d)\.(?:conv\.(\d))?", _named("upsample.up.res_up"), name)
    return name.replace(".gamma", ".weight").replace(".beta", ".bias")


def _named(block: str) -> Any:
    def replace(match: re.Match[str]) -> str:
        level, unit = match.groups()
        return f"{block}_{level}." + (f"conv.conv_{unit}" if unit else "")

    return replace
