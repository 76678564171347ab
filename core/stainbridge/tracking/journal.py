"""What is to be shown in MLflow, on disk first: one JSON line per event, appended, never changed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stainbridge.errors import WriteFailed
from stainbridge.io.atomic import atomic_write
from stainbridge.weights.turns import turn

Event = dict[str, Any]

_PATIENCE_S = 30.0


class Journal:
    """The events of a folder; several processes may append at once.

    Parameters
    ----------
    folder : made where it is missing

    Raises
    ------
    WriteFailed
        If an event cannot be put on disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "journal.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            self.mark = self._own_mark()
        except OSError as error:
            raise _unwritten(self.path, error) from error

    def append(self, *events: Event) -> None:
        """Hand the events to the operating system: they outlive this process; `sync` makes them outlive a power cut."""
        lines = "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events).encode()
        try:
            # A process that was killed, or a full disk, may have left half a line; it stays a line of its own.
            whole = lines if self._ends_well() else b"\n" + lines
            if os.write(self._handle, whole) < len(whole):
                raise OSError("the disk took a part of the line only")
        except OSError as error:
            raise _unwritten(self.path, error) from error

    def sync(self) -> None:
        """Wait until the disk holds everything that was appended."""
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise _unwritten(self.path, error) from error

    def close(self) -> None:
        """Let the file go."""
        os.close(self._handle)
        self._handle = -1  # the number may soon be another file's

    def events(self, start: int = 0) -> Iterator[tuple[Event | None, int]]:
        """Yield each whole line from byte `start` on and the byte after it; None for a line that is torn."""
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):  # somebody is still writing it
                    return
                start += len(line)
                yield _parsed(line), start

    def _ends_well(self) -> bool:
        size = os.fstat(self._handle).st_size
        if size == 0:
            return True
        os.lseek(self._handle, size - 1, os.SEEK_SET)
        return os.read(self._handle, 1) == b"\n"

    def _own_mark(self) -> str:
        """Return the random text that tells the runs of this folder from those of any other."""
        file = self.folder / "mark"
        if not file.exists():
            with turn(self.folder / "mark.lock", patience_s=_PATIENCE_S, progress=lambda: None):
                if not file.exists():
                    with atomic_write(file) as temporary:
                        temporary.write_text(secrets.token_hex(8))
        return file.read_text()


def _parsed(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _unwritten(path: Path, error: OSError) -> WriteFailed:
    return WriteFailed(
        f"{str(path)!r} could not be written: {error.strerror or error}.\nFree some space, or check permissions."
    )
