"""The steps of a training, with its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import TrainingDiverged
from ..interfaces import Learner
from .checkpoints import Checkpoints, Kept, Standing
from .data import Data, feed, numbers_of
from .group import Membership
from .heartbeat import beat
from .logging import Log
from .pulse import alive
from .settings import TrainConfig
from .shortage import TAKES_MORE, Advice, within_memory
from .sources import Told
from .tensors import not_finite

CHUNK = 25
"""Losses are read after so many steps: on a GPU each reading waits for it."""


@dataclass
class Loop:
    """Drives a learner through its epochs; every rank has one.

    Parameters
    ----------
    folder : of the run
    config : of the training
    data : batches
    learner : learns
    group : this process among the ranks
    steps : of an epoch
    checkpoints : where the training stands
    finish : ends an epoch, on rank 0
    log : is told of the losses, on rank 0
    tell : told of progress, on rank 0
    advice : for a device with too little memory
    """

    folder: Path
    config: TrainConfig
    data: Data
    learner: Learner
    group: Membership
    steps: int
    checkpoints: Checkpoints
    finish: Callable[[Standing, Learner], Standing]
    log: Log
    tell: Told
    advice: Advice
    _damaged: set[str] = field(default_factory=set)
    _sums: dict[str, float] = field(default_factory=dict)
    _unread: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    _begun: int = 0

    def run(self, kept: Kept | None) -> Standing:
        """Go on from a checkpoint, or begin; return where the training stands in the end.

        Raises
        ------
        TrainingDiverged
            If a loss is no finite number; the checkpoints are from before.
        WriteFailed
            If the disk is full; the checkpoints before stay whole.
        OutOfMemory
            If a step or the validation does not fit into memory.
        """
        standing = kept.standing if kept else Standing(1, 0, self.steps)
        self._begun = standing.epoch
        for epoch in range(standing.epoch, self.config.epochs + 1):
            # Before the restoring: what an epoch sets is then as it was in the middle of it.
            self.learner.begin(epoch, self.config.epochs, self.steps)
            if kept is not None:
                self.learner.restore(kept.snapshot)
                kept = None
            elif epoch > standing.epoch:
                standing = replace(standing, epoch=epoch, step=0, sums={})
            standing = self._finished(self._epoch(standing))
        return standing

    def _epoch(self, standing: Standing) -> Standing:
        self._sums, self._unread = dict(standing.sums), []
        places = {"batch_size": self.config.batch_size, "rank": self.group.rank, "world": self.group.world}
        numbers = [numbers_of(step, **places) for step in range(standing.step, self.steps)]
        batches = feed(self.data, standing.epoch, numbers, workers=self.config.threads)
        start = standing.step + 1
        for step, batch in enumerate(batches, start):
            # The first step compiles networks, where that is asked for, and takes minutes.
            first = standing.epoch == self._begun and step == start and self.group.rank == 0
            with alive(self.folder, standing.epoch, step, doing="training", when=first):
                self._unread.append((step, self._stepped(batch, standing.epoch, step)))
            self._told(standing.epoch, step)
            if len(self._unread) >= CHUNK or step == self.steps:
                self._read(standing.epoch)
            if self._due(step):
                self._read(standing.epoch)
                standing = self._saved(standing, step)
        return standing

    def _stepped(self, batch: Any, epoch: int, step: int) -> Mapping[str, float]:
        return within_memory(
            lambda: self.learner.step(batch),
            what=lambda: f"Step {step} of epoch {epoch} on {self.group.device!r}",
            advice=lambda: self.advice.text(kept=bool(self.checkpoints.names())),
        )

    def _finished(self, standing: Standing) -> Standing:
        """End the epoch on rank 0, while the others wait."""
        if self.group.rank == 0:
            with alive(self.folder, standing.epoch, standing.step, doing="validating"):
                self.tell(f"epoch {standing.epoch}/{self.config.epochs}: validating", self.steps, self.steps, "")
                standing = self._validated(standing)
                self._prune(standing)
            self.tell("", 0, 0, _summary(standing, self.config.epochs))
            self._tell_of_damage()
        self.group.meet()
        return standing

    def _validated(self, standing: Standing) -> Standing:
        return within_memory(
            lambda: self.finish(standing, self.learner),
            what=lambda: f"Validating epoch {standing.epoch} on {self.group.device!r}",
            advice=lambda: TAKES_MORE,
        )

    def _saved(self, standing: Standing, step: int) -> Standing:
        standing = replace(standing, step=step, sums=dict(self._sums))
        snapshot = self.learner.snapshot()
        broken = not_finite(snapshot.tensors)
        if broken:
            # The loss of a step is from before its update: what the last update broke shows in the weights alone.
            raise TrainingDiverged(self._diverged(f"{broken!r} holds NaN or infinity after", standing.epoch, step))
        with alive(self.folder, standing.epoch, step, doing="writing a checkpoint", when=self.group.rank == 0):
            self.checkpoints.write(standing, snapshot)
        if self.group.rank == 0:
            self._prune(standing)
        return standing

    def _prune(self, standing: Standing) -> None:
        best = int(standing.best["epoch"]) if standing.best else None
        self.checkpoints.prune(best, every=self.config.keep_every)

    def _due(self, step: int) -> bool:
        every = self.config.checkpoint_steps
        return step == self.steps or bool(every and step % every == 0)

    def _told(self, epoch: int, step: int) -> None:
        if self.group.rank == 0:
            beat(self.folder, epoch, step)
            self.tell(f"epoch {epoch}/{self.config.epochs}", step, self.steps, "")

    def _read(self, epoch: int) -> None:
        """Read the losses of the last steps: add them up, log them, and stop at one that is no number."""
        for step, losses in self._unread:
            number = (epoch - 1) * self.steps + step
            values = {name: float(value) for name, value in losses.items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise TrainingDiverged(self._diverged(f"The loss {name!r} became {value} in", epoch, step))
                self._sums[name] = self._sums.get(name, 0.0) + value
            if self.group.rank == 0:
                self.log.step(values, number)
        self._unread = []

    def _diverged(self, what: str, epoch: int, step: int) -> str:
        names = self.checkpoints.names()
        last = (
            f"The last good checkpoint is {str(self.checkpoints.folder / names[-1])!r}"
            if names
            else "There is no checkpoint yet"
        )
        return (
            f"{what} epoch {epoch}, step {step} of {self.steps} "
            f"(step {(epoch - 1) * self.steps + step} of the training).\n"
            f"{last}. Start again in another folder with a lower learning rate, or in single precision."
        )

    def _tell_of_damage(self) -> None:
        for side, patches in self.data.sides.items():
            for file in sorted(patches.damaged.keys() - self._damaged):
                fault = patches.damaged[file]
                self.tell("", 0, 0, f"{file} of the {side} side is damaged in places, which are left out: {fault}")
            self._damaged |= patches.damaged.keys()


def _summary(standing: Standing, epochs: int) -> str:
    values = ", ".join(f"{name} {value:.4g}" for name, value in standing.history[-1].items() if name != "epoch")
    best = standing.best and standing.best["epoch"] == standing.epoch
    return f"epoch {standing.epoch} of {epochs}: {values}{'; the best so far' if best else ''}"
