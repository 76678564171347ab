"""The state of networks and optimisers as flat tensors, and back; and the Adam whose state it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..interfaces import Snapshot

if TYPE_CHECKING:
    import torch


def joined(parts: Mapping[str, Snapshot]) -> Snapshot:
    """Return one snapshot of several: tensors as "name/key", values by name."""
    tensors = {f"{name}/{key}": tensor for name, part in parts.items() for key, tensor in part.tensors.items()}
    return Snapshot(tensors, {name: dict(part.values) for name, part in parts.items() if part.values})


def part(snapshot: Snapshot, name: str) -> Snapshot:
    """Return what `joined` took as `name`; an empty snapshot where there was nothing to take."""
    start = f"{name}/"
    tensors = {key.removeprefix(start): tensor for key, tensor in snapshot.tensors.items() if key.startswith(start)}
    return Snapshot(tensors, snapshot.values.get(name, {}))


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy on the CPU, which what is trained does not change any more."""
    import torch

    found: torch.Tensor = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return found


def of_network(network: torch.nn.Module) -> Snapshot:
    """Return parameters and buffers by their names."""
    return Snapshot({name: copied(tensor) for name, tensor in network.state_dict().items()}, {})


def to_network(network: torch.nn.Module, state: Snapshot) -> None:
    """Give a network the tensors of `of_network`; its own keep their device and memory format.

    Raises
    ------
    ConfigError
        If they are those of another network; names the first that does not fit.
    """
    to_tensors(network.state_dict(), state.tensors)


def to_tensors(own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into one's own of the same names and shapes, whatever their device and memory format.

    Raises
    ------
    ConfigError
        If a name or a shape differs; names the first.
    """
    import torch

    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (own, found)]
    for name in sorted(own.keys() | found.keys()):
        here, there = (f"is {one[name]}" if name in one else "is missing" for one in shapes)
        if here != there:
            raise ConfigError(
                f"The snapshot is not of this learner: {name!r} {there} in the snapshot and {here} in the learner.\n"
                "Go on with the settings that it was made with."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])


def adam(
    networks: Iterable[torch.nn.Module],
    *,
    lr: float,
    betas: tuple[float, float] = (0.5, 0.999),
    weight_decay: float = 0.0,
    fused: bool = False,
) -> torch.optim.Adam:
    """Return Adam over the parameters of networks in order, with coupled L2 decay; see `aligned` for `fused`."""
    import torch

    parameters = chain.from_iterable(network.parameters() for network in networks)
    # fused=False would also turn off the multi-tensor form that torch takes on CUDA by itself.
    return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused or None)


def aligned(optimiser: torch.optim.Optimizer) -> None:
    """Bring gradients into the memory format of their parameters where the optimiser is fused.

    The fused form on a CPU takes both as flat memory: with other strides it would update the wrong elements in silence.
    """
    import torch

    for group in optimiser.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)


def moved(optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Take a step with aligned gradients, unless they were scaled and overflowed; return whether it was taken."""
    aligned(optimiser)
    if not scaler.is_enabled():
        optimiser.step()
        return True
    before = scaler.get_scale()
    scaler.step(optimiser)
    scaler.update()
    return bool(scaler.get_scale() >= before)


def of_optimiser(optimiser: torch.optim.Optimizer) -> Snapshot:
    """Return the state of each parameter as "index/name", and the learning rates of the groups."""
    state = optimiser.state_dict()
    tensors = {f"{index}/{name}": copied(value) for index, own in state["state"].items() for name, value in own.items()}
    return Snapshot(tensors, {"lr": [group["lr"] for group in state["param_groups"]]})


def to_optimiser(optimiser: torch.optim.Optimizer, state: Snapshot) -> None:
    """Give an optimiser the state of `of_optimiser`, in the memory format of its parameters.

    Raises
    ------
    ConfigError
        If the state is that of another optimiser.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    by_index: dict[int, dict[str, Any]] = {}
    for key, tensor in state.tensors.items():
        index, _, name = key.partition("/")
        if int(index) >= len(parameters) or (tensor.dim() and tensor.shape != parameters[int(index)].shape):
            raise ConfigError(
                f"The snapshot is not of this learner: its optimiser has {key!r} of {tuple(tensor.shape)}."
            )
        by_index.setdefault(int(index), {})[name] = _like(parameters[int(index)], tensor)
    whole = optimiser.state_dict()
    groups = [dict(group, lr=lr) for group, lr in zip(whole["param_groups"], state.values["lr"], strict=True)]
    optimiser.load_state_dict({"state": by_index, "param_groups": groups})


def _like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a state in the format of its parameter; counters, which have no shape, as they are."""
    import torch

    return torch.empty_like(parameter).copy_(tensor) if tensor.dim() else tensor.clone()
