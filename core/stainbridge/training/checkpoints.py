"""Where a training stands, on disk: whole or not there, and checked before it is used.

A checkpoint is a folder. ``state.safetensors`` holds the tensors of rank 0, ``rank_N.safetensors`` those in which rank N differs, and
``state.json`` everything else: settings and versions of the training, the hashes of the tensors, and its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import WeightsCorrupt
from ..interfaces import Snapshot
from ..io.atomic import atomic_folder, take_all_back
from .group import Membership
from .tensors import digests, read_tensors, write_tensors

STATE, TENSORS = "state.json", "state.safetensors"
FOLDER = "checkpoints"

_NAME = re.compile(r"epoch_(\d{4,})(?:_step_(\d{6,}))?")
_LEFT = re.compile(r"\..+\.(partial|old)-[0-9a-f]{8}|\.partial-[0-9a-f]{8}\..+")


@dataclass(frozen=True)
class Standing:
    """How far a training has come; plain JSON values.

    Parameters
    ----------
    epoch, step : steps of that epoch that are done, epochs from 1
    steps : of an epoch
    sums : of the losses of these steps, by name
    history : values of each finished epoch, `epoch` among them
    best : the best of them, or None
    """

    epoch: int
    step: int
    steps: int
    sums: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    best: Mapping[str, float] | None = None

    @property
    def name(self) -> str:
        """Name of its checkpoint's folder."""
        return f"epoch_{self.epoch:04d}" + ("" if self.step == self.steps else f"_step_{self.step:06d}")


@dataclass(frozen=True)
class Kept:
    """A checkpoint that was read."""

    standing: Standing
    snapshot: Snapshot


class Checkpoints:
    """The checkpoints of a run.

    Parameters
    ----------
    folder : of the run
    mark : hash of what decides the training: a checkpoint of another one is refused
    group : the ranks that write one together
    facts : what each checkpoint says of the training besides: plain JSON values
    """

    def __init__(
        self, folder: Path, mark: str, group: Membership, facts: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.folder, self.mark, self.group, self.facts = folder / FOLDER, mark, group, dict(facts)

    def write(self, standing: Standing, snapshot: Snapshot) -> None:
        """Write a checkpoint; every rank calls it.

        Raises
        ------
        WriteFailed
            If the disk is full or may not be written to; those before stay whole.
        """
        rank, tensors = self.group.rank, snapshot.tensors
        place = atomic_folder(self.folder / standing.name, overwrite=True, mark=STATE) if rank == 0 else nullcontext()
        with place as made:
            folder, known = self._everyone((made, digests(tensors) if self.group.world > 1 else {}))[0]
            if rank:
                tensors = {key: tensors[key] for key, digest in digests(tensors).items() if digest != known.get(key)}
            part = {
                "tensors": write_tensors(folder / _file_of(rank), tensors).to_dict(),
                "names": list(snapshot.tensors),
            }
            ranks = self._everyone({**part, "values": snapshot.values})
            if rank == 0:
                state = {"mark": self.mark, "training": self.facts, "standing": asdict(standing), "ranks": ranks}
                (folder / STATE).write_text(_sealed(state), "utf-8")
        self.group.meet()

    def newest(self, tell: Callable[[str], None] = lambda _: None) -> Kept | None:
        """Return the newest checkpoint that is whole, or None; every rank calls it.

        One that is not is put aside as ``refused_NAME``, told of, and the one before is taken.

        Raises
        ------
        WeightsCorrupt
            If there are checkpoints and none is whole.
        """
        kept = self._tried(tell) if self.group.rank == 0 else None
        self.group.meet()
        if self.group.rank:
            names = self.names()
            kept = self._read(names[-1]) if names else None
        self.group.meet()
        return kept

    def of_epoch(self, epoch: int) -> Kept | None:
        """Return the checkpoint of the end of an epoch; None where it is not kept or not whole."""
        try:
            return self._read(f"epoch_{epoch:04d}")
        except WeightsCorrupt:
            return None

    def names(self) -> list[str]:
        """Return the names of the checkpoints, the oldest first."""
        found = (
            [path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name)] if self.folder.is_dir() else []
        )
        return sorted(found, key=_age)

    def prune(self, best: int | None, *, every: int) -> None:
        """Remove checkpoints but the last two, that of the best epoch and those of each `every`-th epoch."""
        for name in self.names()[:-2]:
            epoch, within = _age(name)
            if within < math.inf or not (epoch == best or epoch % every == 0):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _tried(self, tell: Callable[[str], None]) -> Kept | None:
        names = self.names()
        for name in reversed(names):
            try:
                return self._read(name)
            except WeightsCorrupt as error:
                aside = self.folder / f"refused_{name}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / name).rename(aside)
                tell(f"The checkpoint {name!r} is refused, and the one before it is taken: {error}")
        if names:
            raise WeightsCorrupt(
                f"None of the {len(names)} checkpoints in {str(self.folder)!r} is whole.\nStart a new training in another folder."
            )
        return None

    def _read(self, name: str) -> Kept:
        folder = self.folder / name
        state = _unsealed(folder / STATE)
        if state["mark"] != self.mark:
            raise WeightsCorrupt(f"{str(folder)!r} is a checkpoint of another training.")
        if len(state["ranks"]) != self.group.world:
            raise WeightsCorrupt(
                f"{str(folder)!r} is of {len(state['ranks'])} processes, and there are {self.group.world}."
            )
        rank, own = self.group.rank, state["ranks"][self.group.rank]
        for other in range(1, self.group.world) if rank == 0 else ():
            # What one rank cannot read none may take; these files hold only what differs from rank 0.
            read_tensors(folder / _file_of(other), state["ranks"][other]["tensors"])
        tensors = read_tensors(folder / _file_of(0), state["ranks"][0]["tensors"])
        if rank:
            tensors |= read_tensors(folder / _file_of(rank), own["tensors"])
        return Kept(Standing(**state["standing"]), Snapshot({key: tensors[key] for key in own["names"]}, own["values"]))

    def _everyone(self, value: Any) -> list[Any]:
        """Return what each rank passes, in their order."""
        if self.group.world == 1:
            return [value]
        import torch

        self.group.meet()
        found: list[Any] = [None] * self.group.world
        torch.distributed.all_gather_object(found, value)
        return found


def sweep(folder: Path) -> None:
    """Remove what a process that was killed left half-written in a run's folder; what it was replacing comes back."""
    for place in filter(Path.is_dir, (folder, folder / FOLDER)):
        take_all_back(place)
        for path in list(place.iterdir()):
            if _LEFT.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _file_of(rank: int) -> str:
    return f"rank_{rank}.safetensors" if rank else TENSORS


def _age(name: str) -> tuple[int, float]:
    """Return epoch and step of a checkpoint's name, infinity for the end of the epoch."""
    epoch, step = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    return int(epoch), math.inf if step is None else int(step)


def _sealed(state: Mapping[str, Any]) -> str:
    """Return JSON that holds the hash of the rest of it."""
    body = json.dumps(state, indent=1)
    return f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}", "state": {body}}}\n'


def _unsealed(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        state: dict[str, Any] = json.loads(text)["state"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsCorrupt(f"{str(path)!r} cannot be read: {error}.") from error
    if _sealed(state) != text:
        raise WeightsCorrupt(f"{str(path)!r} is not what was written: its hash differs.")
    return state
