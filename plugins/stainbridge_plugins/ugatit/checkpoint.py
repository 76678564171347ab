"""A generator from a file: of the original program (`*_params_*.pt`, all its networks) or of a training here (`generator.safetensors`)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stainbridge.torchkit.checkpoints import cleaned, fit_or_refuse, names_early, unfit
from stainbridge.weights import load_state_dict

from .networks import generator

if TYPE_CHECKING:
    import torch


def read_generator(
    path: Path, sha256: str | None = None, direction: Literal["A2B", "B2A"] = "A2B"
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return a generator in evaluation mode, on the CPU, and what `generator` was called with: channels, blocks, size, light.

    Parameters
    ----------
    path : .pt or .pth with the networks of a training by name (`genA2B`, ...), or the state dict of one generator, also .safetensors
    sha256 : what its bytes must hash to; None for a file that was just verified or that the user vouches for
    direction : which generator of a file that has both

    Raises
    ------
    WeightsCorrupt
        If the hash is another, the file is broken, holds anything but tensors, NaN or infinity, or another network: says which one it
        looks like and the first key that does not fit.
    WeightsUnavailable, MissingExtra
        As `stainbridge.weights.load_state_dict`.
    """
    import torch

    # Looked for in the bytes, so that a file of 2.7 GB is read into memory once.
    together = path.suffix != ".safetensors" and any(names_early(path, f"gen{way}") for way in ("A2B", "B2A"))
    state = cleaned(load_state_dict(path, sha256, entry=f"gen{direction}" if together else None, finite=False))
    facts = _facts(state, path, sha256)
    with torch.device("meta"):
        network = generator(**facts)
    kind = "light" if facts["light"] else f"full, {facts['size']} px"
    name = f"a generator of U-GAT-IT ({kind}, channels {facts['channels']}, blocks {facts['blocks']})"
    fit_or_refuse(network, state, path, sha256=sha256, name=name)
    return network.eval(), facts


def _facts(state: Mapping[str, torch.Tensor], path: Path, sha256: str | None) -> dict[str, Any]:
    blocks = {match[1] for key in state if (match := re.match(r"DownBlock\.(\d+)\.conv_block\.", key))}
    first, style = state.get("DownBlock.1.weight"), state.get("FC.0.weight")
    if first is None or first.ndim != 4 or not len(first) or style is None or style.ndim != 2 or not blocks:
        fault = (
            "it is not a generator of U-GAT-IT: it has no kernel 'DownBlock.1.weight', "
            "no matrix 'FC.0.weight' or no blocks 'DownBlock.N.conv_block'"
        )
        raise unfit(state, path, fault, sha256=sha256)
    channels, inputs = len(first), style.shape[1]
    light = inputs == 4 * channels
    # The style of a full network is taken from every value of a map at a quarter of the resolution.
    side = 256 if light else 4 * max(1, math.isqrt(inputs // (4 * channels)))
    return {"channels": channels, "blocks": len(blocks), "size": side, "light": light}
