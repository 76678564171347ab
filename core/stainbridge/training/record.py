"""What a training was started with, and whether it may go on with that."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, OutputExists
from ..io import atomic_write
from ..io.atomic import write_failed
from ..loading import Found
from ..provenance import software
from .checkpoints import FOLDER, sweep
from .settings import TrainConfig

RECORD, RESULT = "training.json", "result.json"

FREE = frozenset(
    {"ihc", "he", "pictures", "workers", "memory_mb", "tracking", "experiment", "keep_every", "checkpoint_steps"}
)
"""Keys of `TrainConfig` that do not decide what is learned; the pictures are compared by their content."""

PARTS = "learner.accumulate"
"""Setting that changes sums by their rounding alone, and what a network normalises over: it may differ when a training goes on."""


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
        """Write ``training.json``; the log of a training that had other settings and left nothing else goes with them."""
        path, text = folder / RECORD, _text(vars(self))
        if path.is_file() and path.read_text("utf-8", "replace") != text:
            shutil.rmtree(folder / "tracking", ignore_errors=True)
        write_json(path, vars(self))

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Return what a training in this folder was started with; None where there is none.

        Raises
        ------
        ConfigError
            If the file is damaged.
        """
        values = read_json(folder / RECORD)
        if values is None:
            return None
        kinds = {"config": dict, "world": int, "model": str, "plugin": dict, "software": dict}
        wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]
        if wrong or values.keys() - kinds.keys():
            raise damaged(folder / RECORD, f"{wrong[0]!r} is missing" if wrong else "it has other keys")
        return cls(**values)

    def check_same(self, before: Record, folder: Path) -> None:
        """Refuse to go on with another training than that of `before`.

        Raises
        ------
        ConfigError
            With every key that differs.
        """
        pairs = [
            (key, was, now)
            for key, was, now in _pairs(before.config, self.config)
            if key.split(".")[0] not in FREE and key != PARTS
        ]
        pairs += [("processes", before.world, self.world)] if before.world != self.world else []
        if pairs:
            listed = "\n".join(f"  {key}: {was!r} before, {now!r} now" for key, was, now in pairs)
            raise ConfigError(
                f"The training in {str(folder)!r} cannot go on with other settings:\n{listed}\n"
                "Give those of before, or start a new training in another folder."
            )

    def changes(self, before: Record) -> str:
        """Return which versions, or parts of a step, differ, in words; the weights may then differ in their last digits."""
        parts = [one for one in _pairs(before.config, self.config) if one[0] == PARTS]
        pairs = [*_pairs(before.software, self.software), *parts]
        return "; ".join(f"{key}: {was} before, {now} now" for key, was, now in pairs)


def make_folder(folder: Path) -> None:
    """Make the folder of a run.

    Raises
    ------
    OutputExists
        If it is a file.
    WriteFailed
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputExists(f"{str(folder)!r} exists and is not a folder.\nRemove it, or name another folder.") from None
    except OSError as error:
        raise write_failed(folder, error) from error


def claim(folder: Path, *, resume: bool) -> Record | None:
    """Make the folder of a run one's own; return what the training in it was started with, None for one that begins.

    A training that has left nothing to go on from may be begun anew, with other settings too.

    Raises
    ------
    OutputExists
        If something is in it that may not be replaced.
    WriteFailed
        If it cannot be read.
    """
    try:
        names = {name for name in os.listdir(folder) if not name.startswith(".")}
    except OSError as error:
        raise write_failed(folder, error) from error
    begun = RECORD in names and _has_begun(folder)
    if begun and not resume:
        raise OutputExists(
            f"{str(folder)!r} holds a training.\nPass --resume to go on with it, or name another folder."
        )
    if RECORD not in names and names - _EARLY:
        raise OutputExists(
            f"{str(folder)!r} exists and is no training (it holds {sorted(names - _EARLY)[0]!r}).\nName another folder."
        )
    sweep(folder)
    return Record.read(folder) if begun else None


def _has_begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in _LEFT) or any((folder / FOLDER).glob("*epoch_*"))


_LEFT = ("model", "latest", "epochs.csv", RESULT)
"""What a training leaves besides its checkpoints."""

_EARLY = {"heartbeat.json", "data.csv", "skipped.csv"}
"""What a training writes before its record."""


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values; a number that is NaN or infinite becomes null, as JSON has no other."""
    with atomic_write(path) as temporary:
        temporary.write_text(_text(values), "utf-8")


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(_known(values), indent=1, allow_nan=False) + "\n"


def _known(value: Any) -> Any:
    """Return the same with NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {key: _known(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what `write_json` wrote; None where there is nothing.

    Raises
    ------
    ConfigError
        If it is damaged.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(found, dict):
        raise damaged(path, f"it holds {type(found).__name__} instead of a table")
    return found


def damaged(path: Path, fault: str, advice: str = "Start a new training in another folder.") -> ConfigError:
    """Return the error for a file of a run that cannot be used."""
    return ConfigError(f"{str(path)!r} is damaged: {fault.rstrip('.')}.\n{advice}")


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, before, now) of every value that differs, keys of tables as "a.b"."""
    for key in {**before, **now}:
        was, found = before.get(key), now.get(key)
        if isinstance(was, Mapping) and isinstance(found, Mapping):
            yield from _pairs(was, found, f"{above}{key}.")
        elif was != found:
            yield f"{above}{key}", was, found
