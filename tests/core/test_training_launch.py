"""Training in several processes, watched from outside; the launches are small scripts in place of torchrun."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from stainbridge.errors import WriteFailed
from stainbridge.training.heartbeat import HEARTBEAT, beat, last_beat
from stainbridge.training.launch import TrainingLost, keep_going, torchrun
from stainbridge.training.launch_attempt import RanksRemain
from stainbridge.training.launch_line import NOTES, note, noted

pytestmark = pytest.mark.heavy  # a hundred processes, one after another

# Launches import single files of the package, without what the package itself imports: a test starts up to seven processes.
ALONE = """
import sys, types
import stainbridge
sys.modules["stainbridge.training"] = types.ModuleType("stainbridge.training")
sys.modules["stainbridge.training"].__path__ = [stainbridge.__path__[0] + "/training"]
"""
PREAMBLE = """
import os, signal, subprocess, sys, time
from pathlib import Path
import alone
from stainbridge.training.heartbeat import beat
from stainbridge.training.launch_line import follow_supervisor, note

folder = Path(os.environ["FOLDER"])
with open(folder / "launches", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
launch = len((folder / "launches").read_text().splitlines())

def checkpoint(step):
    path = folder / "checkpoints" / f"epoch_{step:04d}" / "state.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()

def start(text, rank):
    return subprocess.Popen([sys.executable, "-c", text], env={**os.environ, "RANK": str(rank)}, start_new_session=True)

def started_rank(rank, text="time.sleep(600)", follow=True):
    "Start a rank as torchrun does, in a session of its own, and wait until it has made itself known."
    head = "import os, signal, sys, time, alone; from pathlib import Path; from stainbridge.training.launch_line import *; "
    known = f"note('group_{rank}', os.getpid()); (Path(os.environ['FOLDER']) / f'pid_{{os.getpid()}}').touch(); "
    child = start(head + ("follow_supervisor(); " if follow else "") + known + text, rank)
    while not (folder / f"pid_{child.pid}").exists():
        time.sleep(0.01)
    return child
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FOLDER", str(tmp_path))
    (tmp_path / "alone.py").write_text(ALONE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return tmp_path


@pytest.fixture
def script(folder):
    """Return a function that writes a launch and returns the commands of the first and of later launches."""

    def write(text):
        path = folder / "launch.py"
        path.write_text(PREAMBLE + text)
        return [sys.executable, str(path)], [sys.executable, str(path), "--resume"]

    return write


def launches(folder):
    return (folder / "launches").read_text().splitlines()


def alive(pid):
    """Return whether a process runs; one that has ended and waits to be reaped does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(found.strip()) and not found.strip().startswith("Z")


def ranks(folder):
    return [int(path.name.removeprefix("pid_")) for path in folder.glob("pid_*")]


def wait_until(true, timeout_s=60.0):
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


class TestStartingAgain:
    def test_a_training_that_ends_well_is_started_once(self, script, folder):
        assert keep_going(*script("sys.exit(0)"), folder) == 0
        assert launches(folder) == [""]

    def test_a_launch_that_fails_is_followed_by_one_that_resumes(self, script, folder, capfd):
        failing = "beat(folder, 3, 14, doing='validating')\nnote('failures', {'0': -15, '1': -9})\nsys.exit(1 if launch == 1 else 0)"
        assert keep_going(*script(failing), folder) == 0
        assert launches(folder) == ["", "--resume"]
        told = "Rank 1 was ended by SIGKILL in epoch 3, after step 14, while validating. Starting again "
        assert capfd.readouterr().err == f"{told}from the last checkpoint (1 of 3).\n"

    def test_without_a_newer_checkpoint_it_gives_up(self, script, folder):
        failing = "checkpoint(5) if launch == 1 else None\nnote('failures', {'1': 1})\nsys.exit(1)"
        with pytest.raises(TrainingLost) as lost:
            keep_going(*script(failing), folder, restarts=2)
        # The first wrote a checkpoint, and failed; so did two without one.
        assert len(launches(folder)) == 3
        assert str(lost.value) == (
            f"The training in {str(folder)!r} failed 3 times without a newer checkpoint in between.\n"
            "The last time: Rank 1 ended with exit code 1 before the first step.\n"
            "Look at what the ranks printed above; once mended, run the same command again with --resume."
        )

    def test_with_newer_checkpoints_it_goes_on(self, script, folder):
        assert keep_going(*script("checkpoint(launch)\nsys.exit(launch < 6)"), folder, restarts=1) == 0
        assert len(launches(folder)) == 6

    @pytest.mark.parametrize(
        "written",
        [
            "checkpoint(1)",  # once more
            "(folder / 'checkpoints' / f'refused_{launch}').mkdir(); (folder / 'checkpoints' / f'refused_{launch}' / 'state.json').touch()",
            "(folder / 'checkpoints' / f'epoch_000{launch}').mkdir()",  # not whole
        ],
        ids=["the same again", "refused", "half"],
    )
    def test_what_is_no_newer_checkpoint_does_not_count(self, script, folder, written):
        failing = f"checkpoint(1) if launch == 1 else None\n{written}\nsys.exit(1)"
        with pytest.raises(TrainingLost, match="failed 3 times"):
            keep_going(*script(failing), folder, restarts=2)

    def test_a_rank_that_refuses_is_not_started_again_and_its_reason_is_told(self, script, folder, capfd):
        refusing = (
            "(Path(os.environ['STAINBRIDGE_LAUNCH']) / 'output_1').write_text('ConfigError: no such loss.\\n')\n"
            "note('failed_1', 2)\nnote('failures', {'1': 2, '0': 1})\nsys.exit(1)"
        )
        assert keep_going(*script(refusing), folder) == 2
        assert launches(folder) == [""]
        assert capfd.readouterr().err == "ConfigError: no such loss.\n"

    def test_what_another_rank_printed_last_is_shown(self, script, folder, capfd):
        failing = (
            "(Path(os.environ['STAINBRIDGE_LAUNCH']) / 'output_1').write_text('\\n'.join(f'line {i}' for i in range(99)))\n"
            "note('failures', {'1': 1})\nsys.exit(launch == 1)"
        )
        assert keep_going(*script(failing), folder) == 0
        shown = capfd.readouterr().err.splitlines()
        assert shown[-2] == "line 98"
        assert len(shown) < 20

    def test_an_agent_that_is_killed_is_told_as_such(self, script, folder, capfd):
        assert keep_going(*script("os.kill(os.getpid(), 9) if launch == 1 else None"), folder) == 0
        assert "The process that starts the ranks was ended by SIGKILL before the first step." in capfd.readouterr().err


class TestStuck:
    def test_silence_ends_a_launch(self, script, folder, capfd):
        silent = "beat(folder, 1, 2)\ntime.sleep(600 if launch == 1 else 0)"
        began = time.monotonic()
        assert keep_going(*script(silent), folder, silence_s=1.0) == 0
        assert time.monotonic() - began < 6
        assert "No sign of life for 1 s in epoch 1, after step 2. Starting again" in capfd.readouterr().err

    def test_a_beat_that_goes_on_is_no_silence(self, script, folder):
        beating = "for step in range(14):\n    beat(folder, 1, step)\n    time.sleep(0.2)"
        assert keep_going(*script(beating), folder, silence_s=2.0) == 0
        assert launches(folder) == [""]

    def test_torchrun_does_not_wait_long_for_the_others_when_one_has_failed(self, script, folder, monkeypatch, capfd):
        monkeypatch.setattr("stainbridge.training.launch._GRACE_S", 0.5)
        beating = "note('failed_1', 1)\nwhile launch == 1:\n    beat(folder, 1, 2)\n    time.sleep(0.1)"
        began = time.monotonic()
        assert keep_going(*script(beating), folder) == 0
        assert time.monotonic() - began < 6
        assert "Rank 1 ended with exit code 1 in epoch 1, after step 2. Starting again" in capfd.readouterr().err

    def test_an_old_beat_is_no_sign_of_life(self, script, folder):
        beat(folder, 9, 9)
        with pytest.raises(TrainingLost, match="No sign of life"):
            keep_going(*script("time.sleep(600)"), folder, restarts=0, silence_s=0.6)


class TestNothingIsLeft:
    @pytest.mark.parametrize(
        "rank",
        [
            "started_rank(rank)",
            "started_rank(rank, 'os.kill(os.getpid(), signal.SIGSTOP)')",  # cannot end itself
            "started_rank(rank, 'signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)')",
            'started_rank(rank, \'import subprocess; subprocess.Popen(["sleep", "600"]); time.sleep(600)\')',
            'started_rank(rank, \'import subprocess; subprocess.Popen(["sleep", "600"]); os.kill(os.getpid(), signal.SIGSTOP)\')',
        ],
        ids=["running", "stopped", "deaf", "with a child", "stopped with a child"],
    )
    def test_of_ranks_whose_agent_is_killed(self, script, folder, rank):
        text = f"if launch == 1:\n    for rank in (0, 1):\n        {rank}\n    os.kill(os.getpid(), 9)"
        assert keep_going(*script(text), folder) == 0
        assert len(ranks(folder)) == 2
        assert not any(alive(pid) for pid in ranks(folder))

    def test_of_a_rank_that_was_just_being_started(self, script, folder):
        late = "import time, alone; time.sleep(0.5); from stainbridge.training.launch_line import *; follow_supervisor(); time.sleep(20)"
        text = f"if launch == 1:\n    child = start({late!r}, 0)\n    (folder / f'pid_{{child.pid}}').touch()\n    sys.exit(1)"
        assert keep_going(*script(text), folder) == 0
        assert len(ranks(folder)) == 1
        assert not alive(ranks(folder)[0])

    def test_of_ranks_that_hang_after_the_end(self, script, folder):
        assert keep_going(*script("started_rank(0, follow=False)"), folder) == 0
        assert not alive(ranks(folder)[0])

    def test_or_it_says_so(self, script, folder, monkeypatch):
        monkeypatch.setattr("stainbridge.training.launch_attempt._GONE_S", 0.5)
        hidden = "child = start('import time; time.sleep(600)', 0)\n(folder / f'pid_{child.pid}').touch()"
        with pytest.raises(RanksRemain, match=r"still run .* after they were killed"):
            keep_going(*script(hidden), folder)
        for pid in ranks(folder):
            os.kill(pid, signal.SIGKILL)

    def test_of_folders_for_notes(self, script, folder, monkeypatch):
        scratch = folder / "scratch"
        scratch.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(scratch))
        assert keep_going(*script("sys.exit(launch == 1)"), folder) == 0
        assert list(scratch.iterdir()) == []


class TestSignals:
    @pytest.fixture
    def supervisor(self, script, folder):
        """Return a function that starts a supervisor in a process of its own, whose ranks run already."""
        started = []

        def start(text):
            first, again = script(text)
            call = f"keep_going({first}, {again}, {str(folder)!r})"
            # A shell may have started the tests with signals ignored, and what is ignored stays so.
            heard = "[signal.signal(n, signal.SIG_DFL) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]"
            code = f"import signal, sys, alone; {heard}; from stainbridge.training.launch import keep_going; sys.exit({call})"
            started.append(subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE))
            wait_until(lambda: len(ranks(folder)) == 2)
            return started[0]

        yield start
        for process in started:
            process.kill()
            process.wait()
            process.stderr.close()

    TWO_RANKS = "children = [started_rank(0), started_rank(1)]\n[child.wait() for child in children]"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal_to_the_supervisor_ends_all(self, supervisor, folder, number):
        process = supervisor(self.TWO_RANKS)
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert not any(alive(pid) for pid in ranks(folder))
        assert launches(folder) == [""]

    def test_the_ranks_have_time_to_end_in_good_order(self, supervisor, folder):
        passing_on = (
            "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), (folder / 'tidy').touch(), sys.exit(0)))\n"
        )
        process = supervisor(passing_on + self.TWO_RANKS)
        process.terminate()
        assert process.wait(30) == 143
        assert (folder / "tidy").exists()

    def test_a_supervisor_that_is_killed_takes_all_with_it(self, supervisor, folder):
        process = supervisor("follow_supervisor()\n" + self.TWO_RANKS)
        process.kill()
        wait_until(lambda: not any(alive(pid) for pid in ranks(folder)))

    def test_handlers_are_put_back(self, script, folder):
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
        keep_going(*script("sys.exit(0)"), folder)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before

    def test_it_runs_outside_the_main_thread_too(self, script, folder):
        codes = []
        thread = threading.Thread(target=lambda: codes.append(keep_going(*script("sys.exit(0)"), folder)))
        thread.start()
        thread.join(10)
        assert codes == [0]


class TestHeartbeat:
    def test_it_says_how_far_the_training_is(self, tmp_path):
        beat(tmp_path, 3, 14, doing="validating")
        found = last_beat(tmp_path)
        assert abs(found.pop("time") - time.time()) < 5
        assert found == {"epoch": 3, "step": 14, "doing": "validating"}
        assert [path.name for path in tmp_path.iterdir()] == [HEARTBEAT]

    def test_no_beat_and_a_broken_one_are_none(self, tmp_path):
        assert last_beat(tmp_path) is None
        for text in ("", '{"epoch": 3, "st', "[1]"):
            (tmp_path / HEARTBEAT).write_text(text)
            assert last_beat(tmp_path) is None

    def test_a_folder_that_is_gone_is_an_error_of_ours(self, tmp_path):
        with pytest.raises(WriteFailed, match=r"heartbeat\.json' could not be written"):
            beat(tmp_path / "gone", 1, 1)


def test_torchrun_gets_a_new_store_and_never_restarts_ranks_itself():
    command = torchrun(["train", "-o", "run"], 3)
    assert command[:3] == [sys.executable, "-m", "stainbridge.training.launch_node"]
    assert {"--max-restarts=0", "--nnodes=1", "--nproc-per-node=3", "--rdzv-endpoint=127.0.0.1:0"} <= set(command)
    assert command[-4:] == ["stainbridge", "train", "-o", "run"]


def test_a_process_in_the_group_of_another_ends_itself_only():
    code = "import time; from stainbridge.training.launch_line import follow_supervisor; follow_supervisor(); time.sleep(20)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        process.stdin.close()
        assert process.wait(10) == -signal.SIGKILL


def test_a_note_is_read_back_whole(tmp_path, monkeypatch):
    monkeypatch.setenv(NOTES, str(tmp_path))
    note("group_1", 4711)
    note("group_0", 4710)
    assert noted(tmp_path, "group_*") == {"group_0": 4710, "group_1": 4711}
    assert json.loads((tmp_path / "group_1").read_text()) == 4711
