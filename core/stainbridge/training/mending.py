"""Bring back what somebody removed from the folder of a run."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from ..interfaces import Learner
from .checkpoints import Checkpoints
from .epochs import LATEST, MODEL, summary_of
from .exporting import REGISTRY, ModelFacts, copy_model, write_model
from .settings import TrainConfig


def has_model(folder: Path) -> bool:
    """Return whether the model of the best epoch is there."""
    return (folder / MODEL / REGISTRY).is_file()


def bring_back(
    folder: Path, best: int, checkpoints: Checkpoints, learner: Learner, config: TrainConfig, facts: ModelFacts
) -> str:
    """Put the model of the best epoch into ``model`` again, and return what to tell; the learner is left as it was at that epoch.

    Every rank calls it and restores its learner, which may be a collective operation; rank 0 writes.

    Raises
    ------
    ConfigError
        If neither the checkpoint of the epoch nor the model of another one is kept.
    """
    group, kept = checkpoints.group, checkpoints.of_epoch(best)
    if group.from_first(kept is not None):
        assert kept is not None  # rank 0 has read what the others read
        learner.begin(best, config.epochs, kept.standing.steps)
        learner.restore(kept.snapshot)
        if group.rank == 0:
            write_model(folder / MODEL, learner.export(), facts, summary_of(facts, best, config.epochs))
        return f"{MODEL}/ is missing: it is made again from the checkpoint of epoch {best}, the best."
    gone = f"{MODEL}/ is missing, and the checkpoint of epoch {best}, the best, is not kept or not whole"
    if not (folder / LATEST / REGISTRY).is_file():
        raise ConfigError(f"In {str(folder)!r} {gone}.\nBring one of them back, or start a new training.")
    if group.rank == 0:
        copy_model(folder / LATEST, folder / MODEL)
    return f"{gone}: it now holds the latest epoch, as {LATEST}/ does."
