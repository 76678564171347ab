"""What a supervisor and its processes share: a folder for notes, and a line whose end is the end of everyone on it.

The line is the standard input of every process of an attempt, down to the last child. When the supervisor closes it or dies, even by
SIGKILL, each of them ends itself; when all of them are gone, the supervisor reads the end of it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

NOTES = "STAINBRIDGE_LAUNCH"
"""Environment variable with the folder of notes."""


def follow_supervisor() -> None:
    """Kill this process and its process group as soon as standard input ends."""
    threading.Thread(target=_end_with_line, name="supervisor", daemon=True).start()


def _end_with_line() -> None:
    while os.read(0, 1):
        pass
    own = os.getpid()
    # Of a group that somebody else leads this process ends itself only.
    if os.getpgrp() == own:
        os.killpg(own, signal.SIGKILL)
    os.kill(own, signal.SIGKILL)


def note(name: str, value: Any) -> None:
    """Leave a JSON value for the supervisor, whole or not at all."""
    path = Path(os.environ[NOTES]) / name
    fresh = path.with_name(f".{name}")
    fresh.write_text(json.dumps(value), "utf-8")
    os.replace(fresh, path)


def noted(folder: Path, pattern: str) -> dict[str, Any]:
    """Return what was left in `folder` under names like `pattern`, in the order of the names."""
    return {path.name: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(pattern))}
