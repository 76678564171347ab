"""Work in this process, one item after the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

from .contract import Outcome, R, T, WorkerState, attempt


class Inline:
    """Run in order and in process: errors of an item are outcomes, a crash in native code ends everything."""

    def __init__(self) -> None:
        self.state = WorkerState()

    def run(
        self,
        work: Callable[[T, WorkerState], R],
        items: Sequence[T],
        *,
        affinity: Callable[[T], Hashable] | None = None,
        name: Callable[[T], str] = str,
    ) -> Iterator[Outcome[T, R]]:
        """Yield one outcome per item, in the order of the items; see `Executor.run`."""
        for index, item in enumerate(items):
            yield Outcome(index, item, *attempt(partial(work, item, self.state)))
