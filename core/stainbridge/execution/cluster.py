"""Start Dask workers on this machine, or connect to a scheduler that runs elsewhere."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..errors import MissingExtra
from .contract import SchedulerUnreachable
from .nanny import one_start_nanny

_ALLOWED_FAILURES = 2
_CONNECT_S = 8
_LOOPBACK = "127.0.0.1"
_ARITHMETIC_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def require_dask() -> None:
    """Check that Dask is installed.

    Raises
    ------
    MissingExtra
        If it is not.
    """
    if importlib.util.find_spec("distributed") is None:
        raise MissingExtra.of("a scheduler other than 'inline'", "dask.distributed", "dask")


@contextmanager
def local_client(workers: int | None, threads_per_worker: int, device: str) -> Iterator[Any]:
    """Yield a client of new worker processes on the loopback interface; all are gone afterwards, and their folder too.

    Each worker may use its share of the memory; the one that passes it is restarted, and its item tried again.
    """
    from distributed import Client

    devices = _devices(device)
    count = workers or (len(devices) if devices else _processors() // threads_per_worker) or 1
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stainbridge-", ignore_cleanup_errors=True))
        stack.enter_context(_worker_environment())
        options = [
            _worker(count, threads_per_worker, folder, devices[i % len(devices)] if devices else None)
            for i in range(count)
        ]
        cluster = stack.enter_context(_started(options))
        yield stack.enter_context(Client(cluster, set_as_default=False))


@contextmanager
def remote_client(scheduler: str) -> Iterator[Any]:
    """Yield a client of the scheduler at an address, or of the one that wrote a scheduler file.

    Raises
    ------
    SchedulerUnreachable
        If none answers within about 10 s.
    """
    from distributed import Client

    address = scheduler if "://" in scheduler else _address_in(Path(scheduler))
    try:
        with _quiet("distributed"):
            client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SchedulerUnreachable(
            f"No Dask scheduler answers at {address} (waited up to {_CONNECT_S} s).\n"
            f"Start one with: dask scheduler; or run on this machine with --scheduler local."
        ) from error
    with client:
        yield client


def _address_in(file: Path) -> str:
    try:
        return str(json.loads(file.read_text("utf-8"))["address"])
    except FileNotFoundError:
        found = "there is no such file"
    except (OSError, ValueError, KeyError, TypeError):
        found = "it is not a scheduler file"
    raise SchedulerUnreachable(
        f"Scheduler file {str(file)!r}: {found}.\nA scheduler writes it with: dask scheduler --scheduler-file {file}"
    )


@contextmanager
def _started(workers: list[dict[str, Any]]) -> Iterator[Any]:
    from distributed import Scheduler, SpecCluster

    # A port of its own for the pages that Dask always serves; on loopback, and without the dashboard.
    pages = {"dashboard": False, "dashboard_address": f"{_LOOPBACK}:0"}
    scheduler = {"host": _LOOPBACK, "port": 0, "allowed_failures": _ALLOWED_FAILURES, **pages}
    nanny = one_start_nanny()
    with SpecCluster(
        scheduler={"cls": Scheduler, "options": scheduler},
        workers={i: {"cls": nanny, "options": {**options, **pages}} for i, options in enumerate(workers)},
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster


def _worker(count: int, threads: int, folder: str, device: str | None) -> dict[str, Any]:
    """Return the options of one worker process."""
    from distributed.system import MEMORY_LIMIT

    return {
        "host": _LOOPBACK,
        "nthreads": threads,
        "local_directory": folder,
        "memory_limit": MEMORY_LIMIT // count,
        # Memory here is a model and a picture, not results that could be spilled: a pause would last for ever.
        "config": {f"distributed.worker.memory.{step}": False for step in ("target", "spill", "pause")},
        "env": dict.fromkeys(_ARITHMETIC_THREADS, "1") | ({"CUDA_VISIBLE_DEVICES": device} if device else {}),
        "silence_logs": logging.CRITICAL,
    }


def _processors() -> int:
    from distributed.system import CPU_COUNT

    return int(CPU_COUNT)


def _devices(device: str) -> list[str]:
    """Return the GPUs to share out, one to a worker, as CUDA names them; none unless `device` is "cuda"."""
    if device != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    from ..torchkit import import_torch

    return [str(number) for number in range(import_torch("device 'cuda'").cuda.device_count())]


@contextmanager
def _worker_environment() -> Iterator[None]:
    """Set what a process reads before it starts, and undo afterwards whatever Dask sets beside it."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(_ARITHMETIC_THREADS, "1"))
    # Workers log each connection; what counts comes back as an outcome.
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
