"""What a training was started with, and whether it may go on with that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, OutputExists
from ..io import atomic_write
from ..io.atomic import write_failed
from ..loading import Found
from ..provenance import software
from .checkpoints import sweep
from .settings import TrainConfig

RECORD, RESULT = "training.json", "result.json"

FREE = frozenset(
    {"ihc", "he", "pictures", "workers", "memory_mb", "tracking", "experiment", "keep_every", "checkpoint_steps"}
)
"""Keys of `TrainConfig` that do not decide what is learned; the pictures are compared by their content."""


@dataclass(frozen=True)
class Record:
    """The facts of a training.

    Parameters
    ----------
    config : resolved, with every default of the learner
    world : number of processes
    model : name of what is trained
    plugin : who ships it
    software : versions
    """

    config: dict[str, Any]
    world: int
    model: str
    plugin: dict[str, Any]
    software: dict[str, Any]

    @classmethod
    def of(cls, config: TrainConfig, found: Found, *, world: int, model: str) -> Record:
        """Return the record of a training that starts now."""
        plugin = {"name": found.name, "kind": found.kind, "distribution": found.distribution, "version": found.version}
        return cls(config.to_dict(), world, model, plugin, software())

    @property
    def mark(self) -> str:
        """Hash of what decides the training."""
        deciding = {key: value for key, value in self.config.items() if key not in FREE}
        return hashlib.sha256(json.dumps([deciding, self.world], sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write ``training.json``."""
        write_json(folder / RECORD, vars(self))

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Return what a training in this folder was started with; None where there is none."""
        values = read_json(folder / RECORD)
        return None if values is None else cls(**values)

    def check_same(self, before: Record, folder: Path) -> None:
        """Refuse to go on with another training than that of `before`.

        Raises
        ------
        ConfigError
            With every key that differs.
        """
        pairs = [
            (key, was, now) for key, was, now in _pairs(before.config, self.config) if key.split(".")[0] not in FREE
        ]
        pairs += [("processes", before.world, self.world)] if before.world != self.world else []
        if pairs:
            listed = "\n".join(f"  {key}: {was!r} before, {now!r} now" for key, was, now in pairs)
            raise ConfigError(
                f"The training in {str(folder)!r} cannot go on with other settings:\n{listed}\n"
                "Give those of before, or start a new training in another folder."
            )

    def changes(self, before: Record) -> str:
        """Return which versions differ, in words; the weights may then differ in their last digits."""
        pairs = list(_pairs(before.software, self.software))
        return "; ".join(f"{key}: {was} before, {now} now" for key, was, now in pairs)


def claim(folder: Path, *, resume: bool) -> Record | None:
    """Make the folder of a run one's own; return what the training in it was started with, None for a new one.

    Raises
    ------
    OutputExists
        If something is in it that may not be replaced.
    WriteFailed
        If it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {name for name in os.listdir(folder) if not name.startswith(".")}
    except FileExistsError:
        raise OutputExists(f"{str(folder)!r} exists and is not a folder.\nRemove it, or name another folder.") from None
    except OSError as error:
        raise write_failed(folder, error) from error
    before = Record.read(folder)
    if before is not None and not resume:
        raise OutputExists(
            f"{str(folder)!r} holds a training.\nPass --resume to go on with it, or name another folder."
        )
    if before is None and names - _EARLY:
        raise OutputExists(
            f"{str(folder)!r} exists and is no training (it holds {sorted(names - _EARLY)[0]!r}).\nName another folder."
        )
    sweep(folder)
    return before


_EARLY = {"heartbeat.json", "data.csv", "skipped.csv"}
"""What a training writes before its record."""


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what `write_json` wrote; None where there is nothing.

    Raises
    ------
    ConfigError
        If it is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} is damaged: {error}.\nStart a new training in another folder.") from error


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, before, now) of every value that differs, keys of tables as "a.b"."""
    for key in {**before, **now}:
        was, found = before.get(key), now.get(key)
        if isinstance(was, Mapping) and isinstance(found, Mapping):
            yield from _pairs(was, found, f"{above}{key}.")
        elif was != found:
            yield f"{above}{key}", was, found
