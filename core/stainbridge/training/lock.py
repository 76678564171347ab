"""One training at a time in a folder."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StainbridgeError

LOCK = ".lock"
"""Name of the file in the folder of a run; it holds {"pid", "host"} of the process that trains, and goes with it."""

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


class FolderInUse(StainbridgeError, BlockingIOError):
    """Another process trains into the folder."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder of a run until the block ends; the kernel lets it go when the process dies, however it dies.

    Where files cannot be locked (some network file systems, Windows) or the folder is read-only, nothing is held.

    Raises
    ------
    FolderInUse
        If another process holds it.
    """
    held = _hold(folder / LOCK)
    try:
        yield
    finally:
        if held is not None:
            # Not the file of another process, which took its place where somebody removed ours.
            with suppress(OSError):
                if os.path.samestat(os.fstat(held), os.stat(folder / LOCK)):
                    (folder / LOCK).unlink()
            os.close(held)


def _hold(path: Path) -> int | None:
    """Return the descriptor of the lock, or None where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        try:
            held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file between our opening and our locking.
            if os.path.samestat(os.fstat(held), os.stat(path)):
                os.ftruncate(held, 0)
                os.write(held, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
                return held
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(held)
            if error.errno in _TAKEN:
                raise FolderInUse(_by_whom(path)) from None
            return None
        os.close(held)


def _by_whom(path: Path) -> str:
    try:
        holder = json.loads(path.read_text("utf-8"))
        who = f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, LookupError, TypeError):
        who = "another process"
    return f"{str(path.parent)!r} is being trained into by {who}.\nWait until it is done, or end it; or name another folder."
