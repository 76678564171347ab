"""One process at a time: a lock that the operating system lets go when its holder dies."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL_S = 0.05
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}


@contextmanager
def turn(lock: Path, *, patience_s: float, progress: Callable[[], object]) -> Iterator[bool]:
    """Hold the lock file for the time of the block and yield True.

    Yields False, without the lock, where its holder's `progress` has not changed for `patience_s` seconds or where the
    file system has no locks: the caller then has to work in a place of its own. Raises OSError where the lock file
    cannot be made.
    """
    handle = _wait(lock, patience_s, progress)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            _release(handle, lock)


def _wait(lock: Path, patience_s: float, progress: Callable[[], object]) -> int | None:
    before, since = progress(), time.monotonic()
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        taken = _take(handle)
        if taken and _is_still(handle, lock):
            return handle
        os.close(handle)
        if taken is None:
            return None
        if taken:  # its last holder removed it between our opening and our taking
            continue
        now = progress()
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > patience_s:
            return None
        time.sleep(_POLL_S)


def _take(handle: int) -> bool | None:
    """Return whether the lock is now ours; None where there are no locks."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


def _is_still(handle: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False


def _release(handle: int, lock: Path) -> None:
    # Removed before the lock goes, so that nobody takes a file that is about to vanish. Windows does not remove an open
    # file; an empty one left behind is harmless.
    with suppress(OSError):
        lock.unlink()
    os.close(handle)
