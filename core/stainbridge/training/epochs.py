"""What is done at the end of an epoch: export, look, choose the best, write down."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..errors import ContractViolation, TrainingDiverged, WeightsCorrupt
from ..interfaces import Learner, Plugin
from ..io import atomic_write
from ..loading import Found
from .checkpoints import Standing
from .exporting import REGISTRY, ModelFacts, copy_model, write_model
from .logging import Log
from .settings import TrainConfig
from .subject import built

EPOCHS, LATEST, MODEL = "epochs.csv", "latest", "model"


class Watching(Protocol):
    """Looks at a training after an epoch; see `watching.Watcher`."""

    def watch(self, plugin: Plugin, learner: Learner, epoch: int) -> Mapping[str, float]:
        """Return values of an epoch."""
        ...

    def is_better(self, values: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
        """Tell whether an epoch beats the best of those before it; None: there is none."""
        ...

    def grid(self, epoch: int) -> Path:
        """Return where the picture of an epoch is."""
        ...


@dataclass(frozen=True)
class Finish:
    """Ends epochs of one training, on rank 0.

    Parameters
    ----------
    folder : of the run
    found : the plugin
    config : of the training
    facts : of the model
    watcher : None where nothing is looked at: the last epoch is then the best
    log : is told
    device : that the plugin runs on
    """

    folder: Path
    found: Found
    config: TrainConfig
    facts: ModelFacts
    watcher: Watching | None
    log: Log
    device: str

    def __call__(self, standing: Standing, learner: Learner) -> Standing:
        """Return the standing with the epoch in its history, and the best so far.

        ``latest`` holds the model of this epoch, ``model`` that of the best one. What is done twice after a restart comes out the same.
        """
        epoch = standing.epoch
        losses = {f"loss/{name}": value / standing.steps for name, value in standing.sums.items()}
        seen, best = self._looked(epoch, learner, standing.best)
        row = {"epoch": float(epoch), **losses, **seen}
        history = [*standing.history, row]
        missing = not (self.folder / MODEL / REGISTRY).is_file()
        # Where the best is known and its model was removed, the latest is no substitute; see `mending`.
        if best is not standing.best or (best is None and missing):
            copy_model(self.folder / LATEST, self.folder / MODEL)
        write_epochs(self.folder / EPOCHS, history)
        grid = self.watcher.grid(epoch) if self.watcher and seen else None
        self.log.epoch({name: value for name, value in row.items() if name != "epoch"}, epoch, grid)
        return replace(standing, history=history, best=best)

    def _looked(
        self, epoch: int, learner: Learner, best: Mapping[str, float] | None
    ) -> tuple[Mapping[str, float], Mapping[str, float] | None]:
        """Export, and look where it is time to; return what was seen, and the best epoch."""
        exported = learner.export()
        summary = summary_of(self.facts, epoch, self.config.epochs)
        files = write_model(self.folder / LATEST, exported, self.facts, summary)
        if self.watcher is None:
            return {}, {"epoch": float(epoch)}
        if epoch % self.config.watch.every and epoch < self.config.epochs:
            return {}, best
        try:
            plugin = built(self.found, dict(exported.config), files, self.device)
            seen = dict(self.watcher.watch(plugin, learner, epoch))
        except (ContractViolation, WeightsCorrupt) as error:
            raise TrainingDiverged(
                f"The network of epoch {epoch} cannot be used: {str(error).splitlines()[0]}\n"
                "Start again in another folder with a lower learning rate, or in single precision."
            ) from error
        better = self.watcher.is_better(seen, best)
        return seen, {"epoch": float(epoch), **seen} if better else best


def summary_of(facts: ModelFacts, epoch: int, epochs: int) -> str:
    """Return what a registry says in words about the model of an epoch."""
    return f"trained on {', '.join(facts.training)}: epoch {epoch} of {epochs}"


def write_epochs(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write one row for each epoch; what an epoch has not is empty."""
    names = list(dict.fromkeys(name for row in history for name in row))
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "epoch": int(row["epoch"])} for row in history)
