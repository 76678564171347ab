"""Several processes that train one set of networks; without a process group, one process and no cost.

Whoever starts the processes initialises the group (`torch.distributed.init_process_group`); here it is only used.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def rank() -> int:
    """Return the number of this process among those of the group, from 0; 0 outside a group."""
    return _group().get_rank() if _group() else 0


def world() -> int:
    """Return how many processes the group has; 1 outside a group."""
    return _group().get_world_size() if _group() else 1


def wrapped(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Return a module whose backward pass averages gradients over the group; the module itself outside a group.

    Parameters and buffers start as those of rank 0. Buffers are not sent again: those of our networks (power iterations) follow from
    the weights alone. It may be called several times before one backward pass.
    """
    if not _group():
        return module
    from torch.nn.parallel import DistributedDataParallel

    index = None if device.type == "cpu" else [device]
    # Its name since torch 2.13, which warns of the one before.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    found: torch.nn.Module = DistributedDataParallel(module, device_ids=index, **{name: False})
    return found


@contextmanager
def gathering(modules: Iterable[torch.nn.Module], *, last: bool) -> Iterator[None]:
    """Run forward and backward passes whose gradients add up in this process, and are averaged over the group if they are the last.

    Parameters
    ----------
    modules : as `wrapped` returned them
    last : of the parts of one batch
    """
    with ExitStack() as stack:
        if not last:
            for module in modules:
                if hasattr(module, "no_sync"):
                    stack.enter_context(module.no_sync())
        yield


def averaged(losses: torch.Tensor) -> torch.Tensor:
    """Return the mean over the group of a tensor that every process passes; the tensor itself outside a group."""
    if world() == 1:
        return losses
    found = losses.detach().clone()
    _group().all_reduce(found)
    return found / world()


def _group() -> Any:
    """Return torch.distributed inside an initialised group, or None; whoever initialised a group has imported it."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None
