"""What an executor is given and gives back."""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ..errors import StainbridgeError

T = TypeVar("T")
R = TypeVar("R")
V = TypeVar("V")


class SchedulerUnreachable(StainbridgeError, ConnectionError):
    """No scheduler answers at the address that was asked for."""


class SchedulerLost(StainbridgeError, ConnectionError):
    """The scheduler went away during a run."""


@dataclass(frozen=True)
class Outcome(Generic[T, R]):
    """What became of one item: a value, or an error that says why not.

    Parameters
    ----------
    index : place of the item in the sequence that was given to `run`
    item : the item
    value : what the work returned; None where it failed
    error : "TypeName: message", or an empty string
    trace : the traceback of the error as text; empty where a worker died
    """

    index: int
    item: T
    value: R | None
    error: str = ""
    trace: str = ""

    @property
    def ok(self) -> bool:
        """Whether the work returned."""
        return not self.error


class WorkerState:
    """What stays in a worker between items: one value per name, such as the one model that fits its memory."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Hashable, Any]] = {}
        self._lock = threading.RLock()

    def keep(self, name: str, key: Hashable, make: Callable[[], V]) -> V:
        """Return the value held under `name` if it has this `key`; otherwise free it and make the new one.

        The old value is let go before `make` is called, so two are never in memory together; do not keep a reference to
        it. Threads of one worker share the value.
        """
        with self._lock:
            held_key, value = self._held.get(name, (None, None))
            if name in self._held and held_key == key:
                return value  # type: ignore[no-any-return]
            del value
            if self._held.pop(name, None) is not None:
                _give_memory_back()
            made = make()
            self._held[name] = (key, made)
            return made

    def clear(self) -> None:
        """Let go of every value; one that is being made right now stays."""
        # Without waiting: on a Dask worker this runs in the thread that answers the scheduler.
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._held.clear()
            _give_memory_back()
        finally:
            self._lock.release()


class Executor(Protocol):
    """Where work runs."""

    def run(
        self,
        work: Callable[[T, WorkerState], R],
        items: Sequence[T],
        *,
        affinity: Callable[[T], Hashable] | None = None,
        name: Callable[[T], str] = str,
    ) -> Iterator[Outcome[T, R]]:
        """Yield one outcome per item, each once, as they finish.

        Parameters
        ----------
        work : module-level function of one item and the worker's state. It may run twice for one item (a worker that dies
            takes its results along), so it must be harmless to repeat; it returns little and writes much to files
        items : small and picklable
        affinity : items with one key go to few workers, so that a worker seldom changes its model
        name : how an item is called in messages

        Raises
        ------
        SchedulerLost
            If the scheduler goes away; what was finished stays finished.
        """
        ...


def attempt(call: Callable[[], R]) -> tuple[R | None, str, str]:
    """Return (value, "", "") of a call, or (None, error, traceback); KeyboardInterrupt passes."""
    try:
        return call(), "", ""
    except (Exception, SystemExit) as error:
        return None, describe(error), traceback.format_exc()


def describe(error: BaseException) -> str:
    """Return "TypeName: message"."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _give_memory_back() -> None:
    """Collect what was let go, and return torch's cached blocks to the device for whatever library comes next."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
