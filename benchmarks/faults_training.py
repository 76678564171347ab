"""Kill a random rank of a training of two processes at a random moment, and again, and compare what comes out.

Run: python benchmarks/faults_training.py [--trials 10] [--seed 0] [--keep FOLDER]

A small CycleGAN learns from synthetic pictures by two gloo processes on a CPU: once in peace, then `trials` times with one SIGKILL each,
at a moment drawn evenly from the time between its first step and its last, then once with a rank that is stopped (SIGSTOP) and so waited
for until the limits on silence end it. Written down are the seconds from the fault to the first step of the next launch, whether the
weights are those of the run in peace, bit for bit, what processes were left, and the longest time without a step.
Writes results/faults_training.json. Needs /proc.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from machine import write
from PIL import Image

from stainbridge.testing import synthetic_he, synthetic_ihc
from stainbridge.training.heartbeat import last_beat

PROCESSES = 2
SMALL = {
    "learner.channels": 8,
    "learner.blocks": 2,
    "learner.layers": 2,
    "learner.pool_size": 4,
    "patch_px": 64,
    "resize_px": 72,
    "batch_size": 1,
    "workers": 1,
    "watch.every": 0,
    "epochs": 3,
    "steps": 12,
    "checkpoint_steps": 4,
}
"""A training of seconds whose pools, crops and flips all count."""


@dataclass(frozen=True)
class Fault:
    """A signal to a rank, so many seconds after the first step that follows the fault before it."""

    after_s: float
    rank: int
    signal: int = signal.SIGKILL


@dataclass
class Seen:
    """What was seen of one training.

    Parameters
    ----------
    run : its folder
    began, ended : moments in seconds since 1970, as all that follow
    steps : when a step was noted
    faults : when a signal was sent
    pids : every process below the command, ever
    code : exit code
    """

    run: Path
    began: float
    ended: float = 0.0
    steps: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)
    code: int = -1

    def recoveries_s(self) -> list[float]:
        """Return seconds from each fault to the next launch's first step, or to the end where none was left to do."""
        # A rank may note the step that it was in when another was killed.
        return [
            min([step for step in self.steps if step > fault + 1.0], default=self.ended) - fault
            for fault in self.faults
        ]

    def longest_s(self) -> float:
        """Return the longest time without a step."""
        return float(np.diff([*self.steps, self.ended]).max())

    def left(self) -> int:
        """Return how many of its processes run."""
        return sum(runs(pid) for pid in self.pids)

    def weights(self) -> str:
        """Return one hash of the tensors of the last checkpoint, those of every rank, and of the model; empty where there are none."""
        folders = [*sorted(self.run.glob("checkpoints/epoch_????"))[-1:], self.run / "model"]
        hashes = [
            hashlib.sha256(file.read_bytes()) for folder in folders for file in sorted(folder.glob("*.safetensors"))
        ]
        return hashlib.sha256(b"".join(one.digest() for one in hashes)).hexdigest() if len(hashes) > 1 else ""


def pictures(folder: Path) -> Path:
    """Write three synthetic pictures of each stain, and return the folder."""
    for number in range(3):
        for name, stain in (("ihc", synthetic_ihc), ("he", synthetic_he)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            sample = stain(shape=(160, 160), nuclei=20, mpp=0.5, seed=number)
            Image.fromarray(sample.source.pixels).save(folder / name / f"{number}.png")
    return folder


def command(data: Path, run: Path, **settings: object) -> list[str]:
    """Return the command of one training; settings change those of `SMALL`."""
    sides = ["--ihc", str(data / "ihc"), "--he", str(data / "he"), "--mpp", "0.5", "--no-mlflow"]
    several = [part for key, value in {**SMALL, **settings}.items() for part in ("--set", f"{key}={value}")]
    return [
        sys.executable,
        "-m",
        "stainbridge",
        "train",
        "cyclegan",
        *sides,
        "-o",
        str(run),
        *several,
        "--processes",
        str(PROCESSES),
    ]


def watched(line: Sequence[str], run: Path, faults: Sequence[Fault] = ()) -> Seen:
    """Run a command that trains in `run`, with faults, and return what was seen; what it prints goes to `run`.log."""
    seen, waiting = Seen(run, time.time()), list(faults)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        open(run.with_suffix(".log"), "wb") as log,
        subprocess.Popen(line, env=environment, stdout=log, stderr=log) as process,
    ):
        while process.poll() is None:
            beat = last_beat(run)
            if beat and beat["doing"] == "training" and beat["time"] not in seen.steps[-1:]:
                seen.steps.append(beat["time"])
            if waiting and _due(waiting[0], seen) and _sent(waiting[0], process.pid):
                seen.faults.append(time.time())
                waiting.pop(0)
            seen.pids |= family(process.pid).keys()
            time.sleep(0.05)
    seen.code, seen.ended = process.returncode, time.time()
    return seen


def family(root: int) -> dict[int, str]:
    """Return the command lines of a process's descendants, by id; those that wait to be reaped are none."""
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 3) for line in listing.stdout.splitlines()]
    found: dict[int, str] = {}
    generation = {root}
    while generation:
        children = {int(row[0]): row[-1] for row in rows if int(row[1]) in generation and not row[2].startswith("Z")}
        found |= children
        generation = set(children)
    return found


def ranks_of(root: int) -> dict[int, int]:
    """Return the process ids of the ranks below a supervisor, by rank."""
    found = {}
    for pid, args in family(root).items():
        if "launch_rank" in args and "launch_node" not in args:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {int(one[5:]): pid for one in variables if one.startswith(b"RANK=")}
    return found


def _due(fault: Fault, seen: Seen) -> bool:
    """Return whether the time of a fault has come."""
    before = seen.faults[-1] + 1.0 if seen.faults else 0.0
    first = next((step for step in seen.steps if step > before), None)
    return first is not None and time.time() >= first + fault.after_s


def _sent(fault: Fault, root: int) -> bool:
    """Send the signal if its rank is there."""
    pid = ranks_of(root).get(fault.rank)
    if pid is None:
        return False
    os.kill(pid, fault.signal)
    return True


def runs(pid: int) -> bool:
    """Return whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def main() -> None:
    """Print the figures and write them to results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the runs; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = pictures(options.keep or Path(scratch))
        peace = watched(command(place, place / "peace"), place / "peace")
        span = peace.steps[-1] - peace.steps[0]
        print(f"in peace: exit code {peace.code}, {peace.ended - peace.began:.1f} s, of which steps {span:.1f} s")
        rng = np.random.default_rng(options.seed)
        killed: list[Seen] = []
        # A training that is over before its moment comes is no trial.
        for number in range(2 * options.trials):
            fault = Fault(float(rng.uniform(0, span)), int(rng.integers(PROCESSES)))
            killed += [seen for seen in [_tried(place, f"killed_{number:02d}", fault, peace)] if seen.faults]
            if len(killed) == options.trials:
                break
        stopped = _tried(place, "stopped", Fault(span / 2, 1, signal.SIGSTOP), peace)
        report(peace, killed, stopped)


def _tried(place: Path, name: str, fault: Fault, peace: Seen) -> Seen:
    seen = watched(command(place, place / name), place / name, [fault])
    recovery = ", ".join(f"{seconds:.1f} s to the next step" for seconds in seen.recoveries_s())
    same = seen.weights() == peace.weights() != ""
    print(
        f"{name}: rank {fault.rank} after {fault.after_s:.1f} s; {recovery or 'no fault'}; same weights: {same}",
        flush=True,
    )
    return seen


def report(peace: Seen, killed: Sequence[Seen], stopped: Seen) -> None:
    """Write the figures down."""
    recoveries = [seconds for seen in killed for seconds in seen.recoveries_s()]
    figures = {
        "ranks killed": len(recoveries),
        "trainings finished": sum(seen.code == 0 for seen in killed),
        "weights equal to the run in peace": sum(seen.weights() == peace.weights() != "" for seen in killed),
        "seconds to the next step: median": float(np.median(recoveries)),
        "seconds to the next step: largest": max(recoveries),
        "a rank is stopped: seconds to the next step": max(stopped.recoveries_s()),
        "a rank is stopped: weights equal": int(stopped.weights() == peace.weights() != ""),
        "longest time without a step, s": max(seen.longest_s() for seen in (*killed, stopped)),
        "processes left": sum(seen.left() for seen in (peace, *killed, stopped)),
        "seconds in peace": peace.ended - peace.began,
    }
    print(figures)
    print(write("faults_training", "python benchmarks/faults_training.py", figures, "torch"))


if __name__ == "__main__":
    main()
