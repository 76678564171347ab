"""Work in this process, and on Dask workers that die."""

import builtins
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from stainbridge.errors import ConfigError, MissingExtra
from stainbridge.execution import open_executor
from stainbridge.execution.contract import SchedulerUnreachable, WorkerState

sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
import execution_work as work

on_dask = [pytest.mark.heavy, pytest.mark.filterwarnings("default")]


def dask(test):
    pytest.importorskip("distributed", reason="the dask extra is not installed")
    for mark in on_dask:
        test = mark(test)
    return test


def by_index(outcomes):
    """Return the outcomes in the order of the items; each item exactly once."""
    found = list(outcomes)
    assert sorted(one.index for one in found) == list(range(len(found)))
    return sorted(found, key=lambda one: one.index)


class TestInline:
    def test_every_item_has_one_outcome_and_an_error_stops_no_other(self):
        with open_executor() as executor:
            found = by_index(executor.run(work.fail_on_three, [1, 2, 3, 4]))
        assert [one.value for one in found] == [1, 2, None, 4]
        assert found[2].error == "ValueError: three is wrong"
        assert [one.ok for one in found] == [True, True, False, True]

    def test_a_plugin_that_tries_to_exit_is_a_failure(self):
        with open_executor("inline") as executor:
            found = by_index(executor.run(work.leave_on_three, [3, 4]))
        assert found[0].error.startswith("SystemExit")
        assert found[1].value == 4

    def test_a_model_stays_until_another_is_asked_for(self):
        with open_executor() as executor:
            made = [one.value[1] for one in executor.run(work.model_of, [("a", 1), ("a", 2), ("b", 3), ("a", 4)])]
        assert made == [1, 1, 2, 3]

    def test_the_old_model_is_gone_before_the_new_one_is_made(self):
        state, living = WorkerState(), []

        class Model:
            def __init__(self):
                assert not living
                living.append(self.__class__)

            def __del__(self):
                living.clear()

        state.keep("model", "a", Model)
        state.keep("model", "b", Model)
        assert len(living) == 1

    @pytest.mark.parametrize(
        ("scheduler", "workers", "said"),
        [
            ("locl", None, "Did you mean 'local'"),
            ("inline", 3, "workers is 3"),
            ("local", 0, "give 1 or more"),
            ("tcp://127.0.0.1:1", 2, "has its own workers"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, scheduler, workers, said):
        with pytest.raises(ConfigError, match=said), open_executor(scheduler, workers=workers):
            pass

    def test_without_dask_the_extra_is_named(self, monkeypatch):
        real = builtins.__import__

        def without(name, *rest, **more):
            if name.split(".")[0] in ("dask", "distributed"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", without)
        monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
        with pytest.raises(MissingExtra, match=r"stainbridge\[dask\]"), open_executor("local"):
            pass


@dask
def test_an_address_without_a_scheduler_is_said_within_seconds():
    start = time.monotonic()
    with pytest.raises(SchedulerUnreachable, match=r"127\.0\.0\.1:9"), open_executor("tcp://127.0.0.1:9"):
        pass
    assert time.monotonic() - start < 20


@dask
def test_two_workers_do_each_item_once():
    with open_executor("local", workers=2) as executor:
        found = by_index(executor.run(work.double, list(range(40))))
    assert [one.value for one in found] == [2 * k for k in range(40)]


@dask
@pytest.mark.parametrize("place", [0, 50, 99])
def test_an_item_that_kills_every_worker_is_one_named_failure_among_99_that_are_done(place):
    items = list(range(1, 101))
    items[place] = -1
    start = time.monotonic()
    with open_executor("local", workers=2) as executor:
        found = by_index(executor.run(work.poison, items, name=lambda item: f"picture {item}"))
    assert [one.index for one in found if not one.ok] == [place]
    assert "picture -1" in found[place].error
    assert [one.value for one in found if one.ok] == [item for item in items if item > 0]
    assert time.monotonic() - start < 60


@dask
def test_the_start_of_a_worker_that_died_young_has_ended_before_the_next_begins(monkeypatch):
    """Else the old start declares the new process running before it exists, and closing then fails in Dask."""
    from distributed.nanny import WorkerProcess

    start, under_way, most = WorkerProcess.start, {}, []

    async def counted(process):
        under_way[process] = under_way.get(process, 0) + 1
        most.append(under_way[process])
        try:
            return await start(process)
        finally:
            under_way[process] -= 1

    # Workers die well before the first message of theirs is looked for.
    monkeypatch.setattr(WorkerProcess, "_init_msg_interval", 1.0)
    monkeypatch.setattr(WorkerProcess, "start", counted)
    with open_executor("local", workers=2) as executor:
        found = by_index(executor.run(work.poison, [*range(1, 100), -1]))
    assert [one.index for one in found if not one.ok] == [99]
    assert len(most) > 2, "no worker was started again"
    assert max(most) == 1


@dask
def test_a_worker_killed_twenty_times_loses_and_doubles_nothing():
    import psutil

    items = [(k, 0.05) for k in range(300)]
    killed, stop = [], threading.Event()
    own = psutil.Process()

    def kill():
        while len(killed) < 20 and not stop.wait(0.7):
            workers = [one for one in own.children(recursive=True) if "spawn_main" in " ".join(_command(one))]
            grandchildren = [one for one in workers if one.ppid() != own.pid] or workers
            if grandchildren:
                os.kill(grandchildren[len(killed) % len(grandchildren)].pid, signal.SIGKILL)
                killed.append(1)

    with open_executor("local", workers=2) as executor:
        thread = threading.Thread(target=kill)
        thread.start()
        done, rounds = [], 0
        while len(killed) < 20 and rounds < 40:
            found = by_index(executor.run(work.nap, items[:60]))
            done.append([one.ok for one in found])
            rounds += 1
        stop.set()
        thread.join()
    assert len(killed) == 20
    assert all(len(one) == 60 for one in done)
    assert all(map(all, done)), "an innocent item was called a failure"


def _command(process):
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:
        return []


@dask
def test_nothing_of_a_local_cluster_is_left_behind():
    import psutil

    before = {one.pid for one in psutil.Process().children(recursive=True)}
    with open_executor("local", workers=2) as executor:
        by_index(executor.run(work.double, [1, 2]))
        during = {one.pid for one in psutil.Process().children(recursive=True)} - before
    assert during
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in during):
        assert time.monotonic() < deadline
        time.sleep(0.1)
