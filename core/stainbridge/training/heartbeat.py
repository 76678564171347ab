"""A sign of life of a training, for whoever watches it from outside."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ..io.atomic import write_failed

HEARTBEAT = "heartbeat.json"
"""Name of the file in the folder of a run."""


def beat(folder: str | Path, epoch: int, step: int, *, doing: str = "training") -> None:
    """Say in `folder` how far a training has come: `{"epoch", "step", "doing", "time"}`, the time in seconds since 1970.

    Called by rank 0 alone, at every step, and between the parts of whatever else takes longer than some seconds: reading pictures,
    validating, writing. A reader sees a whole file; it is not forced onto the disk, which would cost more than a step.

    Raises
    ------
    WriteFailed
        If the folder cannot be written.
    """
    path = Path(folder) / HEARTBEAT
    fresh = path.with_name(f".{HEARTBEAT}")
    try:
        fresh.write_text(json.dumps({"epoch": epoch, "step": step, "doing": doing, "time": time.time()}), "utf-8")
        os.replace(fresh, path)
    except OSError as error:
        raise write_failed(path, error) from error


def last_beat(folder: str | Path) -> dict[str, Any] | None:
    """Return what the last `beat` in `folder` said; None where there was none."""
    try:
        found = json.loads((Path(folder) / HEARTBEAT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
