"""Functions that run beside the network, in processes that neither outlive it nor run the user's script again."""

import gc
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("cv2", reason="needs the hovernet extra")

from stainbridge_plugins.hovernet import beside as module
from stainbridge_plugins.hovernet.beside import Beside

pytestmark = pytest.mark.heavy

POPEN = subprocess.Popen


@pytest.fixture
def beside():
    return Beside(2, processes=True)


def alive(pid):
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(found.strip()) and not found.strip().startswith("Z")


def gone(pids):
    until = time.monotonic() + 30
    while any(map(alive, pids)):
        assert time.monotonic() < until, "processes are left"
        time.sleep(0.05)
    return True


def processes(beside):
    """Return the ids of both processes; a call of each keeps the other from taking its work."""
    found = set()
    while len(found) < 2:
        found |= {one.result() for one in [beside.submit(os.getpid) for _ in range(20)]}
    return sorted(found)


def test_they_are_processes_of_their_own(beside):
    assert os.getpid() not in processes(beside)
    assert len({beside.submit(os.getpid).result() for _ in range(50)}) <= 2


def test_threads_are_of_this_process():
    assert Beside(2, processes=False).submit(os.getpid).result() == os.getpid()


def test_arrays_go_and_come_whole(beside):
    given = np.random.default_rng(0).normal(size=(3, 700, 700)).astype(np.float32)
    assert np.array_equal(beside.submit(np.negative, given).result(), -given)


def test_what_is_printed_there_is_no_answer(beside):
    assert beside.submit(print, "noise", flush=True).result() is None
    assert beside.submit(math.sqrt, 4.0).result() == 2.0


def test_an_error_comes_back_as_itself(beside):
    with pytest.raises(ValueError, match="math domain error"):
        beside.submit(math.sqrt, -1.0).result()
    assert beside.submit(math.sqrt, 9.0).result() == 3.0


def test_work_of_a_killed_process_is_done_all_the_same(beside):
    first, second = processes(beside)
    for pid in (first, second):
        os.kill(pid, signal.SIGKILL)
    assert [beside.submit(math.sqrt, float(n * n)).result() for n in range(10)] == list(range(10))
    assert not {first, second} & set(processes(beside))


def test_processes_that_cannot_start_are_tried_once_and_the_work_is_done_here(monkeypatch):
    started = []
    monkeypatch.setattr(module, "_COMMAND", "raise SystemExit")
    monkeypatch.setattr(module.subprocess, "Popen", lambda *a, **k: started.append(1) or POPEN(*a, **k))
    beside = Beside(1, processes=True)
    assert [beside.submit(os.getpid).result() for _ in range(5)] == [os.getpid()] * 5
    assert len(started) == 1


def test_where_an_answer_cannot_be_read_the_work_is_done_here(monkeypatch):
    here, beside = os.getpid(), Beside(1, processes=True)
    assert beside.submit(os.getpid).result() != here
    with monkeypatch.context() as patch:
        patch.setattr(module.pickle, "load", lambda file: int("no number"))
        assert beside.submit(os.getpid).result() == here
    assert beside.submit(os.getpid).result() != here


def test_they_end_when_it_is_forgotten():
    beside = Beside(2, processes=True)
    pids = processes(beside)
    assert all(map(alive, pids))
    del beside
    gc.collect()
    assert gone(pids)


SCRIPT = """
import math, os, signal, sys
from stainbridge_plugins.hovernet import beside as module  # noqa: E402
from stainbridge_plugins.hovernet.beside import Beside
print("began", flush=True)
beside = Beside(1, processes=True)
print(beside.submit(os.getpid).result(), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "raises":
    raise SystemExit(3)
"""


@pytest.mark.parametrize(("how", "code"), [("ends", 0), ("raises", 3), ("killed", -9)])
def test_a_script_without_a_main_guard_runs_once_and_leaves_nothing(tmp_path, how, code):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join(filter(None, sys.path))
    ran = subprocess.run(
        [sys.executable, str(script), how],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
    )
    assert ran.returncode == code
    lines = ran.stdout.split()
    assert lines[0] == "began"
    assert len(lines) == 2
    assert gone([int(lines[1])])
    assert ran.stderr == ""
