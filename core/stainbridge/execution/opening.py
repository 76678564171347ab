"""From what the user wrote to an executor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ConfigError, nearest
from .cluster import local_client, remote_client, require_dask
from .contract import Executor
from .dispatch import OnDask
from .inline import Inline

_NAMES = ("inline", "local")


@contextmanager
def open_executor(
    scheduler: str | int | None = None, *, workers: int | None = None, threads_per_worker: int = 1, device: str = "cpu"
) -> Iterator[Executor]:
    """Yield an executor; what it started is gone when the block ends, on an error and on Ctrl-C too.

    Parameters
    ----------
    scheduler : "inline" (the default), in this process; "local", or a number, for so many Dask workers on this machine;
        "tcp://host:port" or the path of a scheduler file (``.json``) for a cluster that runs
    workers : number of local workers; more than one and no scheduler named means "local". Default: one per processor, or
        per GPU where `device` is "cuda"
    threads_per_worker : items that a local worker has in work at once; they share its model
    device : "cuda" gives each local worker one GPU, which it sees as the only one

    Raises
    ------
    ConfigError
        If the scheduler is none of these, or the numbers contradict it.
    MissingExtra
        If Dask is needed and not installed.
    SchedulerUnreachable
        If no scheduler answers.
    """
    place, count = _place(scheduler, workers)
    _check(place, count, threads_per_worker)
    if place == "inline":
        inline = Inline()
        try:
            yield inline
        finally:
            inline.state.clear()
        return
    require_dask()
    if place == "local":
        with local_client(count, threads_per_worker, device) as client:
            yield OnDask(client, "of this process")
        return
    with remote_client(place) as client:
        executor = OnDask(client, f"at {place}")
        try:
            yield executor
        finally:
            executor.release()


def _place(scheduler: str | int | None, workers: int | None) -> tuple[str, int | None]:
    """Return "inline", "local" or an address, and the number of workers that was asked for."""
    if scheduler is None:
        return ("local", workers) if workers and workers > 1 else ("inline", workers)
    if not str(scheduler).lstrip("-").isdecimal():
        return str(scheduler), workers
    if workers not in (None, int(scheduler)):
        raise ConfigError(f"Scheduler {scheduler} means {scheduler} local workers, but workers is {workers}. Give one.")
    return "local", int(scheduler)


def _check(place: str, workers: int | None, threads: int) -> None:
    known = place in _NAMES or "://" in place or place.endswith(".json")
    if not known:
        raise ConfigError(
            f"Scheduler {place!r} is none of: inline, local, a number of local workers, tcp://host:port, the path of a "
            f"scheduler file (.json).{nearest(place, _NAMES)}"
        )
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers cannot work; give 1 or more.")
    if threads < 1:
        raise ConfigError(f"{threads} threads per worker cannot work; give 1 or more.")
    if place == "inline" and workers not in (None, 1):
        raise ConfigError(
            f"Scheduler 'inline' works in this process alone, but workers is {workers}. Did you mean 'local'?"
        )
    if place not in _NAMES and workers is not None:
        raise ConfigError(f"The cluster at {place} has its own workers; leave out workers = {workers}.")
