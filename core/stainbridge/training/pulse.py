"""Signs of life while something takes its time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import WriteFailed
from .heartbeat import beat

EVERY_S = 10.0


@contextmanager
def alive(folder: Path, epoch: int, step: int, *, doing: str, when: bool = True) -> Iterator[None]:
    """Beat for `folder` until the block ends, as rank 0 does (`when`) in what no other rank takes part in."""
    if not when:
        yield
        return
    done = threading.Event()

    def go_on() -> None:
        # A full disk is found out by whoever writes something that counts.
        with suppress(WriteFailed):
            while not done.wait(EVERY_S):
                beat(folder, epoch, step, doing=doing)

    beat(folder, epoch, step, doing=doing)
    thread = threading.Thread(target=go_on, name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
