"""Functions that the tests of execution send to workers; a worker imports them by name."""

import ctypes
import os
import signal
import time
from pathlib import Path


def double(item, state):
    return item * 2


def fail_on_three(item, state):
    if item == 3:
        raise ValueError("three is wrong")
    return item


def leave_on_three(item, state):
    if item == 3:
        raise SystemExit(4)
    return item


class Unpicklable(Exception):
    """An exception that a worker cannot send home."""

    def __init__(self):
        super().__init__("cannot travel")
        self.lock = __import__("threading").Lock()


def fail_unpicklable(item, state):
    raise Unpicklable


def return_unpicklable(item, state):
    return (number for number in range(3))


def nap(item, state):
    """Sleep for item[1] seconds, and say where and as who."""
    time.sleep(item[1])
    return os.getpid()


def poison(item, state):
    """End the process where the item is negative, as a crash in native code does."""
    time.sleep(0.01)
    if item < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def poison_slowly(item, state):
    time.sleep(0.05)
    if item < 0:
        ctypes.string_at(0)
    return item


def note(item, state):
    """Write that an item was begun into a folder, then work for a moment."""
    folder, number, seconds = item
    Path(folder, f"{number}-{os.getpid()}-{time.time_ns()}").touch()
    time.sleep(seconds)
    return number


def model_of(item, state):
    """Return (pid, how many models this process has made, key of the one it holds)."""
    key = item[0]
    time.sleep(0.02)

    def make():
        made = state.keep("made", "list", list)
        made.append(key)
        return key

    held = state.keep("model", key, make)
    return os.getpid(), len(state.keep("made", "list", list)), held


def environment(item, state):
    return {name: os.environ.get(name) for name in item}


def listening(item, state):
    """Return the addresses on which this process listens."""
    import psutil

    return sorted({c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN})


def nap_times(item, state):
    begun_s = time.time()
    time.sleep(item[1])
    return begun_s, time.time()


def slow_model_of(item, state):
    time.sleep(0.1)
    return model_of(item, state)
