"""Join the ranks that torchrun started; without torchrun, one process and no cost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from ..errors import ConfigError, DeviceUnavailable

TIMEOUT_S = 60.0
"""Seconds after which a collective operation fails whose other ranks do not come."""

_PATIENCE = timedelta(days=7)

T = TypeVar("T")


@dataclass(frozen=True)
class Membership:
    """This process among the ranks of a training.

    Parameters
    ----------
    rank, world : number of this process from 0, and how many there are
    device : what this process computes on: "cpu", "cuda" or "cuda:N"
    """

    rank: int
    world: int
    device: str
    _patient: Any = None

    def meet(self) -> None:
        """Wait until every rank is here: rank 0 for the others up to `TIMEOUT_S`, they for rank 0 however long it takes.

        For what rank 0 does alone, such as validating: a collective operation of the training would not wait longer than `TIMEOUT_S`.

        Raises
        ------
        RuntimeError
            If a rank dies, or does not come.
        """
        if self._patient is not None:
            import torch

            wait = timedelta(seconds=TIMEOUT_S) if self.rank == 0 else _PATIENCE
            torch.distributed.monitored_barrier(self._patient, timeout=wait)

    def from_first(self, value: T) -> T:
        """Return what rank 0 passes, a value that can be pickled; every rank calls it, and waits as in `meet`."""
        if self.world == 1:
            return value
        import torch

        self.meet()
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self._patient)
        return box[0]


def started_by_torchrun() -> bool:
    """Return whether this process is a rank that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


@contextmanager
def joined(device: str) -> Iterator[Membership]:
    """Initialise torch's process group for the ranks of torchrun, and leave it at the end; a group of one outside torchrun.

    Parameters
    ----------
    device : "cpu", or "cuda" for one GPU to each rank of this machine

    Raises
    ------
    ConfigError
        If one GPU is named for several ranks.
    DeviceUnavailable
        If there are fewer GPUs than ranks on this machine.
    """
    if not started_by_torchrun():
        yield Membership(0, 1, device)
        return
    import torch

    own = _own_device(device)
    bound = torch.device(own) if own != "cpu" else None
    if bound is not None:
        torch.cuda.set_device(bound)
    torch.distributed.init_process_group(
        "gloo" if bound is None else "cpu:gloo,cuda:nccl", timeout=timedelta(seconds=TIMEOUT_S), device_id=bound
    )
    patient = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    yield Membership(torch.distributed.get_rank(), torch.distributed.get_world_size(), own, patient)
    # Not after an error: the others may be gone, and to take leave of them would wait for them.
    torch.distributed.destroy_process_group()


def _own_device(device: str) -> str:
    """Return the GPU of this rank: the n-th of the machine for its n-th rank."""
    here, local = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if device == "cpu" or here == 1:
        return device
    if device != "cuda":
        raise ConfigError(
            f"{here} processes cannot share {device!r}.\nPass --device cuda, which gives one GPU to each."
        )
    import torch

    if torch.cuda.device_count() < here:
        raise DeviceUnavailable(
            f"{here} processes need {here} GPUs; this machine has {torch.cuda.device_count()}.\nPass fewer --processes, or --device cpu."
        )
    return f"cuda:{local}"
