"""Which item goes to which worker next."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence


class Waiting:
    """Indices that wait, in order within a key; a worker gets items of the key that it holds as long as there are any.

    Parameters
    ----------
    indices : what waits
    keys : the affinity of every item, by index
    """

    def __init__(self, indices: Iterable[int], keys: Sequence[Hashable]) -> None:
        self._keys = keys
        self._queues: dict[Hashable, deque[int]] = {}
        for index in indices:
            self._queues.setdefault(keys[index], deque()).append(index)
        self._held: dict[str, Hashable] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def forget_all_but(self, workers: Iterable[str]) -> None:
        """Drop what is known of workers that are gone."""
        self._held = {worker: self._held[worker] for worker in workers if worker in self._held}

    def hold(self, worker: str, index: int) -> None:
        """Note that a worker has run an item, and so holds its key."""
        self._held[worker] = self._keys[index]

    def take(self, worker: str) -> int:
        """Return the next index for a worker.

        Raises
        ------
        IndexError
            If nothing waits.
        """
        if not self._queues:
            raise IndexError("nothing waits")
        held = self._held.get(worker)
        key = held if worker in self._held and held in self._queues else self._best()
        self._held[worker] = key
        index = self._queues[key].popleft()
        if not self._queues[key]:
            del self._queues[key]
        return index

    def _best(self) -> Hashable:
        """Return the first key that no worker holds, else the one with the most items per worker."""
        holders = Counter(self._held.values())
        untouched: Iterator[Hashable] = (key for key in self._queues if not holders[key])
        return next(untouched, max(self._queues, key=lambda key: len(self._queues[key]) / max(holders[key], 1)))
