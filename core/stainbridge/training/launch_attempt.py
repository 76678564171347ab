"""One launch of a training in several processes: start it, look at it, and leave nothing of it behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import StainbridgeError
from .launch_line import NOTES, noted

_GONE_S = 15.0
_LAST_LINES = 15


class RanksRemain(StainbridgeError, RuntimeError):
    """Processes of a training could not be killed; starting others would have two trainings write one folder."""


@dataclass(frozen=True)
class Attempt:
    """A launch that runs.

    Parameters
    ----------
    agent : the process that starts the ranks
    line : our end of everyone's standard input
    notes : folder in which they say what we need to know
    """

    agent: subprocess.Popen[bytes]
    line: socket.socket
    notes: Path

    def failed(self) -> dict[int, int]:
        """Return exit codes by rank of those that say that they end with an error; one that was killed says nothing."""
        return {int(name.removeprefix("failed_")): code for name, code in noted(self.notes, "failed_*").items()}

    def last_words(self, rank: int) -> str:
        """Return the end of what a rank printed; nothing for rank 0, which prints where the supervisor does."""
        try:
            lines = (self.notes / f"output_{rank}").read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(lines[-_LAST_LINES:])

    def failures(self) -> dict[int, int]:
        """Return exit codes by rank, -n for signal n, of ranks that failed by themselves."""
        found = {int(rank): code for rank, code in noted(self.notes, "failures").get("failures", {}).items()}
        # The agent ends the others by SIGTERM when one has failed.
        own = {rank: code for rank, code in found.items() if code != -signal.SIGTERM}
        return own or self.failed() or found

    def kill(self) -> None:
        """Kill the agent and every rank, and wait until they are gone.

        Raises
        ------
        RanksRemain
            If some are not gone after 15 s, as a process that waits for a broken disk or GPU.
        """
        with suppress(OSError):
            self.line.shutdown(socket.SHUT_WR)
        until = time.monotonic() + _GONE_S
        # A rank that was just being started adds itself to the notes, or ends by itself.
        while not self._empty(0.1):
            for group in (self.agent.pid, *noted(self.notes, "group_*").values()):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
            if time.monotonic() > until:
                raise RanksRemain(
                    f"Some processes of the training still run {_GONE_S:.0f} s after they were killed.\n"
                    "They may wait for a disk or a GPU that does not answer: look for them with ps, then run again with --resume."
                )
        self.agent.wait()

    def _empty(self, timeout_s: float) -> bool:
        """Return whether nobody is on the line any more."""
        self.line.settimeout(timeout_s)
        try:
            return self.line.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True


@contextmanager
def launched(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Attempt]:
    """Yield a launch of `command` in a process group of its own; afterwards every process of it is gone."""
    with tempfile.TemporaryDirectory(prefix="stainbridge-launch-") as notes:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                agent = subprocess.Popen(
                    command, stdin=theirs.fileno(), env={**environment, NOTES: notes}, start_new_session=True
                )
            attempt = Attempt(agent, ours, Path(notes))
            try:
                yield attempt
            finally:
                attempt.kill()
