"""Work on a Dask cluster: a few items in flight, each placed on a worker, each outcome once."""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Generic

from .contract import Outcome, R, SchedulerLost, T, WorkerState, attempt, describe
from .waiting import Waiting

_STATE = "_stainbridge_state"
_AHEAD = 1
_LOOK_S = 1.0
"""How often the workers are counted; clusters grow, shrink and lose workers."""


class OnDask:
    """Run on the workers of a Dask client.

    In flight are as many items as the workers have threads, and one more per worker, so that none stands idle for the
    milliseconds until the next arrives. Nothing is pinned to a worker: Dask (2026.8) leaves a pinned task waiting for ever
    when all workers die at once, even one that other workers are allowed to take.

    Parameters
    ----------
    client : distributed.Client
    address : how the scheduler is called in messages
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address

    def run(
        self,
        work: Callable[[T, WorkerState], R],
        items: Sequence[T],
        *,
        affinity: Callable[[T], Hashable] | None = None,
        name: Callable[[T], str] = str,
    ) -> Iterator[Outcome[T, R]]:
        """Yield one outcome per item, as they finish; see `Executor.run`.

        Raises
        ------
        SchedulerLost
            If the scheduler goes away; what was finished stays finished.
        TypeError, pickle.PicklingError
            If `work` cannot be pickled.
        """
        from distributed.protocol.pickle import dumps

        keys = [affinity(item) if affinity else None for item in items]
        flight: _Flight[T, R] = _Flight(self._client, self._address, dumps(work), items, name)
        try:
            yield from flight.over(Waiting(range(len(items)), keys))
            # Who was on a worker when it died is not always who killed it: each is tried alone before it is called failed.
            for index in flight.suspects:
                yield from flight.over(Waiting([index], keys), alone=True)
        finally:
            flight.cancel()

    def release(self) -> None:
        """Let the workers free what `WorkerState.keep` holds; a cluster outlives one run."""
        attempt(partial(self._client.run, forget, wait=False))


class _Flight(Generic[T, R]):
    """The items in flight of one run."""

    def __init__(self, client: Any, address: str, work: bytes, items: Sequence[T], name: Callable[[T], str]) -> None:
        self.suspects: list[int] = []
        self._client, self._address, self._work = client, address, work
        self._items, self._name = items, name
        self._flying: dict[Any, tuple[int, str]] = {}
        self._landed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads: dict[str, int] = {}
        self._looked_s = float("-inf")
        self._finished = 0

    def over(self, waiting: Waiting, *, alone: bool = False) -> Iterator[Outcome[T, R]]:
        """Yield the outcomes of what waits, except of items whose workers died: those become `suspects` unless `alone`."""
        while waiting or self._flying:
            self._look(waiting)
            yield from self._launch(waiting)
            landed = self._wait()
            if landed is None:
                continue
            future, index, worker = landed
            # The free worker first: what follows takes several milliseconds.
            if not alone:
                yield from self._launch(waiting)
            outcome = self._land(future, index, worker, waiting, alone)
            # Released now, not when the next one lands: Dask sends a message at most every 10 ms, and then the next item's
            # would wait behind this one.
            del future, landed
            if outcome is not None:
                self._finished += 1
                yield outcome

    def cancel(self) -> None:
        """Cancel what has not begun; what runs on a worker runs to its end."""
        flying, self._flying = list(self._flying), {}
        if flying and self._client.status == "running":
            attempt(partial(self._client.cancel, flying, force=True))

    def _look(self, waiting: Waiting) -> None:
        """Count the workers' threads, once in a while."""
        if time.monotonic() - self._looked_s < _LOOK_S:
            return
        try:
            self._threads = dict(self._client.nthreads())
        except (OSError, RuntimeError, ValueError) as error:
            raise self._lost(describe(error)) from error
        self._looked_s = time.monotonic()
        waiting.forget_all_but(self._threads)

    def _launch(self, waiting: Waiting) -> Iterator[Outcome[T, R]]:
        """Give every free thread an item; yield the outcomes of items that cannot be sent."""
        from distributed.protocol.pickle import dumps

        for worker in self._free():
            if not waiting:
                return
            index = waiting.take(worker)
            sent, error, trace = attempt(partial(dumps, self._items[index]))
            if sent is None:
                yield Outcome(index, self._items[index], None, error, trace)
                continue
            self._fly(index, worker, sent)

    def _free(self) -> Iterable[str]:
        """Return the worker of every free place, round by round: each worker has one item before any has two."""
        busy = Counter(worker for _, worker in self._flying.values())
        places = {worker: threads + _AHEAD for worker, threads in self._threads.items()}
        rounds = max(places.values(), default=0)
        return [worker for turn in range(rounds) for worker, n in places.items() if busy[worker] <= turn < n]

    def _fly(self, index: int, worker: str, item: bytes) -> None:
        try:
            future = self._client.submit(perform, self._work, item, pure=False)
        except (OSError, RuntimeError) as error:
            raise self._lost(describe(error)) from error
        # Dask chooses the worker; `worker` is the one that it will most likely choose.
        self._flying[future] = (index, worker)
        future.add_done_callback(self._landed.put)

    def _wait(self) -> tuple[Any, int, str] | None:
        """Return (future, index, worker) of what landed, or None where nothing did for a while."""
        try:
            future = self._landed.get(timeout=_LOOK_S)
        except queue.Empty:
            return None
        return future, *self._flying.pop(future)

    def _land(self, future: Any, index: int, expected: str, waiting: Waiting, alone: bool) -> Outcome[T, R] | None:
        """Return the outcome of what landed, or None where the item became a suspect."""
        answer, error = self._answer(future)
        if answer is not None:
            self._ran(index, expected, answer[0], waiting)
        deaths = getattr(error, "allowed_failures", None)
        if deaths is None:
            return self._outcome(index, answer, error)
        self._looked_s = float("-inf")
        if alone:
            return self._killer(index, deaths + 1)
        self.suspects.append(index)
        return None

    def _ran(self, index: int, expected: str, worker: str, waiting: Waiting) -> None:
        """Note where an item ran; where that is another worker than expected, the two items had changed places."""
        waiting.hold(worker, index)
        if worker == expected:
            return
        for future, (other, place) in self._flying.items():
            if place == worker:
                self._flying[future] = (other, expected)
                return

    def _answer(self, future: Any) -> tuple[Any, BaseException | None]:
        from concurrent.futures import CancelledError

        try:
            return future.result(), None
        except CancelledError as error:
            raise self._lost(describe(error)) from error
        except Exception as error:  # whatever the work raised while it was being unpickled
            return None, error

    def _outcome(self, index: int, answer: Any, error: BaseException | None) -> Outcome[T, R]:
        from distributed.protocol.pickle import loads

        if error is not None:
            return Outcome(index, self._items[index], None, describe(error))
        _, sent, message, trace = answer
        return Outcome(index, self._items[index], None if message else loads(sent), message, trace)

    def _killer(self, index: int, deaths: int) -> Outcome[T, R]:
        item = self._items[index]
        return Outcome(
            index,
            item,
            None,
            f"KilledWorker: picture {self._name(item)!r} ended its worker {deaths} times, alone on it the last {deaths}: out of "
            f"memory, or a crash in native code.\nTry it by itself with --scheduler inline to see what it does.",
        )

    def _lost(self, reason: str) -> SchedulerLost:
        return SchedulerLost(
            f"The scheduler {self._address} went away after {self._finished} of {len(self._items)} items ({reason}).\n"
            f"What is finished is on disk: start the same command again, and it goes on from there."
        )


def perform(work: bytes, item: bytes) -> tuple[str, bytes | None, str, str]:
    """Run on a worker: return (its address, pickled value, error, traceback).

    Everything that can fail fails in here: an exception that cannot be pickled would cost the item its message.
    """
    from distributed import get_worker
    from distributed.protocol.pickle import dumps, loads

    worker = get_worker()
    state = vars(worker).setdefault(_STATE, WorkerState())
    return worker.address, *attempt(lambda: dumps(loads(work)(loads(item), state)))


def forget(dask_worker: Any) -> None:
    """Run on a worker: free what it keeps."""
    state = vars(dask_worker).get(_STATE)
    if state is not None:
        state.clear()
