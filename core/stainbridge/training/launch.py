"""Train in several processes of this machine, and start them again when one is lost.

A rank that dies leaves the others waiting in a collective operation, and an elastic restart on the old store may wait for ever. So all
of them are killed, and a new launch with a new store goes on from the last checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import StainbridgeError
from .heartbeat import last_beat
from .launch_attempt import Attempt, launched
from .launch_rank import REFUSED

RESTARTS = 3
"""Launches in a row that may fail without a newer checkpoint, after the first."""
SILENCE_S = 90.0
"""Seconds without a heartbeat after which a training counts as stuck."""

_LOOK_EVERY_S = 0.1
_GRACE_S = 10.0
_LOOPBACK = "127.0.0.1"


class TrainingLost(StainbridgeError, RuntimeError):
    """Launches of a training failed one after the other without a newer checkpoint."""


def supervise(
    arguments: Sequence[str],
    folder: str | Path,
    *,
    processes: int,
    restarts: int = RESTARTS,
    silence_s: float = SILENCE_S,
) -> int:
    """Run ``stainbridge`` with `arguments` as `processes` ranks of torchrun until the training is finished.

    Parameters
    ----------
    arguments : such as ``["train", "cyclegan", ..., "-o", "run"]``; ``--resume`` is added from the second launch on. What would start
        processes must not do so where `group.started_by_torchrun`
    folder : the run's folder, where rank 0 keeps its heartbeat and its checkpoints
    restarts : launches in a row that may fail without a newer checkpoint, after the first
    silence_s : seconds without a heartbeat after which a launch counts as stuck

    Returns
    -------
    exit code: 0 for a finished training, 2 where a rank refused and has said why, 128 + n after signal n to this process

    Raises
    ------
    TrainingLost
        If launches fail one after the other without a newer checkpoint.
    RanksRemain
        If processes of a launch cannot be killed.
    """
    resuming = [*arguments, *(() if "--resume" in arguments else ("--resume",))]
    return keep_going(
        torchrun(arguments, processes),
        torchrun(resuming, processes),
        folder,
        restarts=restarts,
        silence_s=silence_s,
        environment=_environment(processes),
    )


def torchrun(arguments: Sequence[str], processes: int) -> list[str]:
    """Return the command that runs ``stainbridge`` with `arguments` as ranks on this machine, on a store and port of its own."""
    node = ["--nnodes=1", f"--nproc-per-node={processes}", "--max-restarts=0"]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={_LOOPBACK}:0", f"--local-addr={_LOOPBACK}"]
    rank = ["-m", f"{__package__}.launch_rank", "stainbridge", *arguments]
    return [sys.executable, "-m", f"{__package__}.launch_node", *node, *meeting, *rank]


def keep_going(
    first: Sequence[str],
    again: Sequence[str],
    folder: str | Path,
    *,
    restarts: int = RESTARTS,
    silence_s: float = SILENCE_S,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Run the command `first`, and `again` as often as it takes; see `supervise`."""
    folder, command, failed = Path(folder), first, 0
    with _signals() as signals:
        while True:
            seen = checkpoints(folder)
            with launched(command, environment) as attempt:
                stuck = _watch(attempt, folder, silence_s, signals)
                if signals:
                    return _end(attempt, signals[0])
                if not stuck and attempt.agent.returncode == 0:
                    return 0
                refused = [rank for rank, code in sorted(attempt.failed().items()) if code == REFUSED]
                if refused:
                    _say(attempt.last_words(refused[0]))
                    return REFUSED
                what = stuck or _what_happened(attempt)
            failed = 1 if checkpoints(folder) - seen else failed + 1
            if failed > restarts:
                raise TrainingLost(_lost(what, failed, folder))
            _say(f"{what}{_place(folder)}. Starting again from the last checkpoint ({failed} of {restarts}).")
            command = again


def checkpoints(folder: Path) -> set[str]:
    """Return the names of the whole checkpoints in a run's folder: where each of them stands, whenever it was written."""
    return {path.parent.name for path in folder.glob("checkpoints/epoch_*/state.json")}


def _watch(attempt: Attempt, folder: Path, silence_s: float, signals: list[int]) -> str:
    """Wait until a launch ends, is stuck or a signal comes; return what is wrong with one that is stuck."""
    heard = last_beat(folder)
    since = well = time.monotonic()
    while attempt.agent.poll() is None and not signals:
        time.sleep(_LOOK_EVERY_S)
        beat, now = last_beat(folder), time.monotonic()
        if beat != heard:
            heard, since = beat, now
        if not attempt.failed():
            well = now
        # torchrun gives the other ranks half a minute, and one that stands still will not end by itself.
        if now - well > _GRACE_S:
            return ""
        if now - since > silence_s:
            return f"No sign of life for {silence_s:g} s"
    return ""


def _end(attempt: Attempt, number: int) -> int:
    """Pass a signal on, give the ranks some seconds to end in good order, and return the exit code."""
    attempt.agent.send_signal(number)
    until = time.monotonic() + _GRACE_S
    while attempt.agent.poll() is None and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)
    return 128 + number


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield a list that fills with the numbers of signals to end; one that is ignored already stays so."""
    caught: list[int] = []
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:
                    signal.signal(number, lambda number, _: caught.append(number))
                    stack.callback(signal.signal, number, before)
        yield caught


def _environment(processes: int) -> dict[str, str]:
    """Return the environment of the ranks, which share this machine's processors and speak over its loopback interface."""
    shared = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }
    return {**shared, **os.environ}


def _what_happened(attempt: Attempt) -> str:
    failures = attempt.failures()
    for rank in failures:
        _say(attempt.last_words(rank))
    if not failures:
        return f"The process that starts the ranks {_ending(attempt.agent.returncode)}"
    return "; ".join(f"Rank {rank} {_ending(code)}" for rank, code in failures.items())


def _ending(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _place(folder: Path) -> str:
    beat = last_beat(folder)
    if not beat or not beat["epoch"]:
        return " before the first step"
    doing = "" if beat["doing"] == "training" else f", while {beat['doing']}"
    return f" in epoch {beat['epoch']}, after step {beat['step']}{doing}"


def _lost(what: str, failed: int, folder: Path) -> str:
    return (
        f"The training in {str(folder)!r} failed {failed} times without a newer checkpoint in between.\n"
        f"The last time: {what}{_place(folder)}.\n"
        "Look at what the ranks printed above; once mended, run the same command again with --resume."
    )


def _say(text: str) -> None:
    if text:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
