"""The process beside each local worker, which starts it again when it dies."""

from __future__ import annotations

import asyncio
from typing import Any


def one_start_nanny() -> type:
    """Return Dask's nanny, with the start of a worker always ended before the next one begins.

    Dask's own begins the next as soon as the process has died, while the start of the dead one may still wait for that
    process's first message. A worker that dies within that wait (50 ms) then makes the old start declare the new process
    running before it exists, and closing the cluster in that moment fails: "can only join a started process".
    """
    from distributed import Nanny, Status

    class OneStartNanny(Nanny):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._start_turn = asyncio.Lock()
            super().__init__(*args, **kwargs)

        async def instantiate(self) -> Status:
            """Start the worker process when no other start is under way; none is started by a nanny that closes."""
            async with self._start_turn:
                if self.status in (Status.closing, Status.closed, Status.closing_gracefully):
                    return self.status
                return await super().instantiate()

    return OneStartNanny
