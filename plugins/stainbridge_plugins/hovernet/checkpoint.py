"""A HoVer-Net from a file: of the original program (`.tar` with the key `desc`) or of a training here (`.safetensors`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stainbridge.errors import ConfigError
from stainbridge.torchkit import import_torch
from stainbridge.torchkit.checkpoints import cleaned, fit_or_refuse, names_early, unfit
from stainbridge.weights import load_state_dict

from .network import Design, Mode, build

if TYPE_CHECKING:
    import torch

_MODES: dict[int, Mode] = {5: "original", 3: "fast"}
_WIDTH = "conv0./.weight"
_KERNEL = "decoder.np.u3.conva.weight"
_TYPES = "decoder.tp.u0.conv.weight"
_COUNTER = "num_batches_tracked"
_PATTERN = "upsample2x.unpool_mat"


def read_network(
    path: Path, sha256: str | None = None, *, mode: Mode | Literal["auto"] = "auto", types: int | None = None
) -> torch.nn.Module:
    """Return the network of a file in evaluation mode, on the CPU; its `design` says which it is.

    What files converted from TensorFlow lack is filled in: counters of batches, and the pattern by which maps are doubled.

    Parameters
    ----------
    path : .tar, .pth or .pt of the original program or a bare state dict of it, or .safetensors
    sha256 : what its bytes must hash to; None for a file that was just verified or that the user vouches for
    mode : what it must be; "auto" takes any
    types : how many types it must have, background included, 0 for none; None takes any

    Raises
    ------
    ConfigError
        If it is a HoVer-Net of another mode or with another number of types; says which was found.
    WeightsCorrupt
        If the hash is another, the file is broken, holds anything but tensors, NaN or infinity, or another network.
    WeightsUnavailable, MissingExtra
        As `stainbridge.weights.load_state_dict`.
    """
    torch = import_torch("hovernet")
    state = read_state(path, sha256)
    design = _design(state, path, sha256)
    _check_asked(design, path, mode, types)
    with torch.device("meta"):
        network = build(design)
    state.setdefault(_PATTERN, torch.ones(2, 2))
    # They only matter to a training that averages over all batches, which HoVer-Net's does not.
    state |= {name: torch.zeros((), dtype=torch.int64) for name in network.state_dict() if name.endswith(_COUNTER)}
    fit_or_refuse(network, state, path, sha256=sha256, name=f"a HoVer-Net, {described(design)}")
    return network.eval()


def read_state(path: Path, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name, whether under "desc" as the original writes them or bare; errors as `read_network`."""
    wrapped = path.suffix != ".safetensors" and names_early(path, "desc")
    return cleaned(load_state_dict(path, sha256, entry="desc" if wrapped else None))


def described(design: Design) -> str:
    """Return a design in words."""
    types = f"{design.types} types, background included" if design.types else "no types"
    return f"mode {design.mode!r} with {types}"


def _design(state: Mapping[str, torch.Tensor], path: Path, sha256: str | None) -> Design:
    """Read from shapes which HoVer-Net it is."""
    for name in (_WIDTH, _KERNEL):
        if name not in state or state[name].ndim != 4:
            raise unfit(state, path, f"it is not a HoVer-Net: it has no kernel {name!r}", sha256=sha256)
    kernel, width = state[_KERNEL].shape[-1], len(state[_WIDTH])
    types = len(state[_TYPES]) if _TYPES in state and state[_TYPES].ndim else 0
    if kernel not in _MODES or width not in (64, 32, 16, 8) or types == 1:
        fault = (
            f"it is not a HoVer-Net: kernels of {kernel} px instead of 5 or 3, {width} channels at first, {types} types"
        )
        raise unfit(state, path, fault, sha256=sha256)
    return Design(_MODES[kernel], types, 64 // width)


def _check_asked(design: Design, path: Path, mode: Mode | Literal["auto"], types: int | None) -> None:
    if mode in ("auto", design.mode) and types in (None, design.types):
        return
    asked = [f"mode {mode!r}"] if mode != "auto" else []
    asked += [f"{types} types" if types else "no types"] if types is not None else []
    raise ConfigError(
        f"{path.name!r} holds a HoVer-Net, {described(design)}; asked for was {' with '.join(asked)}.\n"
        f"Name another file, or take this one as it is, without names of types: --set segmenter.mode={design.mode} "
        f"--set segmenter.types={design.types} --set 'segmenter.type_names=[]'"
    )
