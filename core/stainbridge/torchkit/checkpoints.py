"""State dicts of other people's programs: what is stale in them is dropped, and what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsCorrupt

if TYPE_CHECKING:
    import torch

_STALE = ("running_mean", "running_var", "num_batches_tracked")
_HEAD_BYTES = 1 << 22

# Published networks by the keys that give them away, the more telling ones first.
_LAYOUTS = (
    ({"gap_fc.weight_orig"}, "a discriminator of U-GAT-IT"),
    ({"gap_fc.weight", "UpBlock2.2.weight"}, "a generator of U-GAT-IT"),
    (
        {"model.1.weight", "model.2.running_var", "model.2.weight"},
        "a generator with batch normalisation, as DeepLIIF's",
    ),
    ({"model.1.weight", "model.10.conv_block.1.weight"}, "a generator of CycleGAN"),
    ({"model.model.0.weight"}, "a U-Net generator of pix2pix"),
    ({"model.0.weight", "model.2.weight", "model.5.weight"}, "a discriminator of CycleGAN or pix2pix"),
    ({"conv0./.weight"}, "a HoVer-Net"),
    ({"output.2.weight"}, "a network of Cellpose"),
)


def cleaned(state: Mapping[str, torch.Tensor], *, norms: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Return a state dict without what old versions of torch left in it.

    Parameters
    ----------
    state : tensors by name. A prefix `module.` goes where every name has it (the network was saved from several devices).
    norms : names of layers that have no statistics; those that the file has for them go. Instance normalisation wrote some before
        torch 0.4, and never used them.
    """
    kept = dict(state)
    while kept and all(name.startswith("module.") for name in kept):
        kept = {name.removeprefix("module."): tensor for name, tensor in kept.items()}
    stale = {f"{norm}.{name}" for norm in norms for name in _STALE}
    return {name: tensor for name, tensor in kept.items() if name not in stale}


def fit_or_refuse(
    network: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    file: Path,
    *,
    sha256: str | None = None,
    name: str | None = None,
) -> None:
    """Put the tensors of a file into a network, after `cleaned`; each name and shape must fit, and each value be a finite number.

    Parameters
    ----------
    network : may be one that was built on the device "meta", without memory; its weights are then those of the file, on the CPU
    state : tensors by name; of any precision where the network has floating-point numbers
    file, sha256 : where they are from, for messages
    name : of the network in messages, such as "a generator of CycleGAN (channels 64, blocks 9)"; its class if None

    Raises
    ------
    WeightsCorrupt
        If something does not fit; names the first such key in the order of the network, then of the file. The network is unchanged.
    """
    import torch

    own = network.state_dict()
    kept = cleaned(state, norms=_instance_norms(network))
    fault = _first_fault(own, kept)
    if fault:
        raise unfit(state, file, f"it is not {name or type(network).__name__}: {fault}", sha256=sha256)
    # Copied, as a tensor of a file may be a view of it that changes with it.
    fitting = {key: kept[key].detach().to(own[key].dtype, copy=True).contiguous() for key in own}
    # Smallest and largest instead of each, which would take as much memory again.
    ends = {key: torch.stack(torch.aminmax(tensor)) for key, tensor in fitting.items()}
    bad = next((key for key, pair in ends.items() if not pair.isfinite().all()), None)
    if bad:
        expected = f" (sha256 {sha256})" if sha256 else ""
        raise WeightsCorrupt(f"{file.name!r} cannot be used: {bad!r} holds NaN or infinity{expected}.\nPath: {file}")
    network.load_state_dict(fitting, assign=any(tensor.is_meta for tensor in own.values()))


def unfit(state: Mapping[str, Any], file: Path, fault: str, *, sha256: str | None = None) -> WeightsCorrupt:
    """Return the error for a file that holds another network; says which one it looks like."""
    expected = f" (sha256 {sha256})" if sha256 else ""
    like = next((network for keys, network in _LAYOUTS if keys <= state.keys()), "")
    found = f"It looks like {like}." if like else f"It begins with {', '.join(list(state)[:3])}."
    return WeightsCorrupt(f"{file.name!r} does not fit: {fault}{expected}.\n{found}\nPath: {file}")


def names_early(file: Path, name: str) -> bool:
    """Return whether `name` is a string in the pickle of a torch checkpoint, which stands at its beginning; nothing is loaded."""
    if not file.is_file():
        return False
    # A pickle puts the length before a string, in one byte or four. The name of the file, which is in it too, has none.
    length, text = len(name.encode()), name.encode()
    with file.open("rb") as opened:
        head = opened.read(_HEAD_BYTES)
    return any(length.to_bytes(size, "little") + text in head for size in (1, 4))


def _first_fault(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str:
    for key, wanted in own.items():
        found = state.get(key)
        if found is None:
            return f"it has no tensor {key!r}"
        if found.is_nested or found.is_meta or found.layout != wanted.layout:
            return f"{key!r} is not a plain tensor"
        if found.shape != wanted.shape:
            return f"{key!r} has the shape {tuple(found.shape)} instead of {tuple(wanted.shape)}"
        if not (found.is_floating_point() if wanted.is_floating_point() else found.dtype == wanted.dtype):
            return f"{key!r} holds {found.dtype} instead of {wanted.dtype}"
    unknown = next((key for key in state if key not in own), None)
    return f"it has a tensor {unknown!r}, which that network has not" if unknown else ""


def _instance_norms(network: torch.nn.Module) -> list[str]:
    import torch

    return [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, torch.nn.GroupNorm) and not layer.affine and layer.num_groups == layer.num_channels
    ]
