"""The cache under other processes, read-only and full."""

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stainbridge.errors import WriteFailed
from stainbridge.weights import Store
from stainbridge.weights import store as store_module

FETCH = """
import sys
from stainbridge.registry import Weight
from stainbridge.weights import Store
from pathlib import Path
folder, sha256, size, url = sys.argv[1:]
weight = Weight(file="net.pt", sha256=sha256, size=int(size), sources=(url,))
print(Store(Path(folder), timeout_s=20).fetch(weight))
"""


def start_fetching(folder, weight):
    command = [sys.executable, "-c", FETCH, str(folder), weight.sha256, str(weight.size), weight.sources[0]]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def make_read_only(monkeypatch):
    """Refuse what a read-only file system refuses: permission bits do not bind root, who may run the tests."""

    def refuse(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(args[0]))

    def open_for_reading(path, flags, *args, **options):
        return (
            refuse(path) if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else real_open(path, flags, *args, **options)
        )

    def stream_for_reading(path, mode="r", *args, **options):
        return refuse(path) if set(mode) & set("wax+") else real_stream(path, mode, *args, **options)

    real_open, real_stream = os.open, io.open
    for name in ("mkdir", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(os, "open", open_for_reading)
    monkeypatch.setattr(io, "open", stream_for_reading)


def test_a_read_only_cache_without_the_file_names_the_folder_and_the_variable(store, local, monkeypatch):
    make_read_only(monkeypatch)
    with pytest.raises(WriteFailed, match="STAINBRIDGE_CACHE") as failure:
        store.fetch(local)
    assert str(store.folder) in str(failure.value)
    assert "Read-only file system" in str(failure.value)


def test_a_read_only_cache_with_the_file_serves_it(store, local, content, monkeypatch):
    store.fetch(local)
    make_read_only(monkeypatch)
    assert store.fetch(local, licence="MIT").read_bytes() == content


def test_a_read_only_cache_with_a_wrong_file_says_both(store, local, monkeypatch):
    flip(store.fetch(local), 5)
    make_read_only(monkeypatch)
    with pytest.raises(WriteFailed, match="is not the registered file") as failure:
        store.fetch(local)
    assert local.sha256 in str(failure.value)


def test_a_cache_that_is_a_file_is_a_write_failure(tmp_path, local):
    with pytest.raises(WriteFailed, match="STAINBRIDGE_CACHE"):
        Store(tmp_path / "copy.pt").fetch(local)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_write_failure_and_leaves_nothing_at_the_final_path(server, store, content, weight_of):
    url = server.put("net.pt", content)
    weight = weight_of(content, url)
    part = store.folder / "unverified" / weight.sha256 / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(WriteFailed, match="No space left"):
        store.fetch(weight)
    assert not store.where(weight).exists()


@pytest.mark.heavy
def test_two_processes_at_once_download_once_and_both_get_the_file(server, tmp_path, content, weight_of, tree):
    weight = weight_of(content, server.put("net.pt", content, delay_s=1))
    both = [start_fetching(tmp_path / "cache", weight) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert {out.strip() for out, _ in answers} == {str(tmp_path / "cache" / weight.sha256 / "net.pt")}
    assert len(server.asked) == 1
    assert tree(tmp_path / "cache") == [f"{weight.sha256}/net.pt"]


def test_a_killed_download_leaves_a_part_from_which_the_next_goes_on(server, tmp_path, content, weight_of, tree):
    url = server.put("net.pt", content + bytes(2_000_000))
    weight = weight_of(content + bytes(2_000_000), url)
    server.pages["/net.pt"].pause_after = 1_000_000
    process = start_fetching(tmp_path / "cache", weight)
    deadline = time.monotonic() + 30
    while server.bytes_served < 1_000_000 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = {path for path in tree(tmp_path / "cache") if not path.endswith((".lock", ".validator"))}
    assert len(left) == 1
    part = tmp_path / "cache" / left.pop()
    assert part.suffix == ".part"
    kept = part.stat().st_size
    assert 0 < kept < weight.size
    server.pages["/net.pt"].pause_after = None
    served = server.bytes_served
    Store(tmp_path / "cache").fetch(weight)
    assert server.bytes_served - served == weight.size - kept
    assert tree(tmp_path / "cache") == [f"{weight.sha256}/net.pt"]


def test_a_holder_that_does_not_get_on_is_not_waited_for(server, store, content, weight_of, monkeypatch, tree):
    import fcntl

    weight = weight_of(content, server.put("net.pt", content))
    monkeypatch.setattr(store_module, "PATIENCE_S", 0.2)
    lock = store.folder / "unverified" / f"{weight.sha256}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert store.fetch(weight).read_bytes() == content
    assert [path for path in tree(store.folder) if not path.endswith(".lock")] == [f"{weight.sha256}/net.pt"]


def test_a_file_system_without_locks_is_worked_on_in_a_place_of_ones_own(store, local, content, monkeypatch, tree):
    import fcntl

    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert store.fetch(local).read_bytes() == content
    assert [path for path in tree(store.folder) if not path.endswith(".lock")] == [f"{local.sha256}/net.pt"]
