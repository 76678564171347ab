"""Work beside the network: in threads, or in processes of this machine.

A process is started by a command line and not by multiprocessing, which would run the user's script a second time and is refused inside the
workers of a cluster.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

from .postprocessing import require_cv2

Place: TypeAlias = Literal["auto", "threads", "processes"]

P = ParamSpec("P")
T = TypeVar("T")

_CLOSING_S = 5
_COMMAND = "from stainbridge_plugins.hovernet.beside import serve; serve()"


class Beside:
    """Runs functions beside the caller; what it started ends with it.

    Parameters
    ----------
    workers : how many at once
    processes : in a process each, started when first needed; else in threads, which share Python's lock with the caller
    """

    def __init__(self, workers: int, *, processes: bool) -> None:
        self._threads = ThreadPoolExecutor(workers, "hovernet")
        self._processes = _Processes() if processes else None
        weakref.finalize(self, _close, self._threads, self._processes)

    def submit(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> Future[T]:
        """Run a function of a module; what it is given and what it returns are plain data."""
        if self._processes is None:
            return self._threads.submit(function, *args, **options)
        return self._threads.submit(self._processes.call, function, *args, **options)


class _Processes:
    """One process per thread that calls."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []
        self._in_vain = False

    def call(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run the function in this thread's process; here, where that process died or its answer cannot be read."""
        if self._in_vain:
            return function(*args, **options)
        process = self._mine()
        try:
            pickle.dump((function, args, options), process.stdin, protocol=5)  # type: ignore[arg-type]
            process.stdin.flush()  # type: ignore[union-attr]
            error, found = pickle.load(process.stdout)  # type: ignore[arg-type]
        except Exception:
            _end(process, wait_s=0)
            # One that has never answered would not the next time either.
            self._in_vain = process is not getattr(self._own, "answered", None)
            return function(*args, **options)
        self._own.answered = process
        if error is not None:
            raise error
        answer: T = found
        return answer

    def close(self) -> None:
        """End the processes: they leave when there is nothing more to read."""
        for process in self._all:
            _end(process, wait_s=_CLOSING_S)

    def _mine(self) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] | None = getattr(self._own, "process", None)
        if process is None or process.poll() is not None:
            process = self._own.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            self._all.append(process)
        return process


def serve() -> None:
    """Answer what comes from standard input on standard output, until there is no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    cv2 = require_cv2()
    cv2.setNumThreads(1)
    while True:
        try:
            function, args, options = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = None, function(*args, **options)
        except Exception as error:
            answer = error, None
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


def _close(threads: ThreadPoolExecutor, processes: _Processes | None) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    if processes is not None:
        processes.close()


def _end(process: subprocess.Popen[bytes], *, wait_s: float) -> None:
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    try:
        process.wait(wait_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
