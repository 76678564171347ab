"""A generator from a file: of the original program (`latest_net_G_A.pth`) or of a training here (`generator.safetensors`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stainbridge.errors import WeightsCorrupt
from stainbridge.torchkit.checkpoints import cleaned, fit_or_refuse, names_early, unfit
from stainbridge.weights import load_state_dict

from .networks import generator

if TYPE_CHECKING:
    import torch


def read_generator(path: Path, sha256: str | None = None) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return a generator in evaluation mode, on the CPU, and what `generator` was called with: channels, blocks, dropout.

    Parameters
    ----------
    path : state dict of one generator, .pth, .pt or .safetensors
    sha256 : what its bytes must hash to; None for a file that was just verified or that the user vouches for

    Raises
    ------
    WeightsCorrupt
        If the hash is another, the file is broken, holds anything but tensors, NaN or infinity, or another network: says which one it
        looks like and the first key that does not fit.
    WeightsUnavailable, MissingExtra
        As `stainbridge.weights.load_state_dict`.
    """
    import torch

    if path.suffix != ".safetensors" and names_early(path, "genA2B"):
        raise WeightsCorrupt(
            f"{path.name!r} does not fit: it is not a generator of CycleGAN but a file of U-GAT-IT with all its networks.\n"
            f"Use it with translator 'ugatit'.\nPath: {path}"
        )
    state = cleaned(load_state_dict(path, sha256, finite=False))
    facts = _facts(state, path, sha256)
    with torch.device("meta"):
        network = generator(**facts)
    name = f"a generator of CycleGAN (channels {facts['channels']}, blocks {facts['blocks']})"
    fit_or_refuse(network, state, path, sha256=sha256, name=name)
    return network.eval(), facts


def _facts(state: Mapping[str, torch.Tensor], path: Path, sha256: str | None) -> dict[str, Any]:
    blocks = {match[1] for key in state if (match := re.match(r"model\.(\d+)\.conv_block\.", key))}
    first = state.get("model.1.weight")
    if first is None or first.ndim != 4 or not len(first) or not blocks:
        fault = "it is not a generator of CycleGAN: it has no kernel 'model.1.weight' or no blocks 'model.N.conv_block'"
        raise unfit(state, path, fault, sha256=sha256)
    # Dropout stands between the two convolutions of a block and moves the second one on by a place.
    dropout = any(key.endswith(".conv_block.6.weight") for key in state)
    return {"channels": len(first), "blocks": len(blocks), "dropout": dropout}
