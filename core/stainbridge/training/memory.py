"""Things that cost time to make, kept up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Memory:
    """What was used last is kept; several threads may ask at once.

    Parameters
    ----------
    limit_bytes : of what is kept; the thing asked for last is kept whatever its size
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """Return what is kept under `key`, or what `make` returns with its size in bytes."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        # Made outside the lock: two threads may make the same, but none waits for a picture that it does not want.
        value, size = make()
        with self._lock:
            if key in self._kept:
                return self._kept[key][0]
            self._kept[key] = (value, size)
            self._held_bytes += size
            while self._held_bytes > self.limit_bytes and len(self._kept) > 1:
                self._held_bytes -= self._kept.popitem(last=False)[1][1]
        return value
