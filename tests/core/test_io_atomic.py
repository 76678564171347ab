"""Files that appear whole or not at all."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stainbridge.errors import OutputExists, UnreadablePicture, WriteFailed
from stainbridge.io import atomic, atomic_write
from stainbridge.io.atomic import atomic_folder, check_vacant, take_all_back, take_back


@contextmanager
def without_permission(folder: Path) -> Iterator[None]:
    """Take away the right to write into `folder`; root, whom no mode stops, becomes nobody meanwhile."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def public() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "ledger.json"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".json"
        assert temporary.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["ledger.json"]


def _fail_midway(path: Path) -> None:
    path.write_text("half")
    raise ZeroDivisionError


def test_older_file_survives_a_block_that_fails(tmp_path: Path) -> None:
    target = tmp_path / "ledger.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(target) as temporary:
        _fail_midway(temporary)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["ledger.json"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some space on that disk"),
        (errno.EROFS, "That disk is read-only"),
        (errno.EACCES, "You may not write there"),
        (errno.EIO, "Check the folder"),
    ],
)
def test_error_of_the_disk_says_what_to_do(tmp_path: Path, number: int, advice: str) -> None:
    with (
        pytest.raises(WriteFailed, match=r"ledger\.json' could not be written") as caught,
        atomic_write(tmp_path / "ledger.json"),
    ):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in str(caught.value)
    assert advice in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_errors_of_ours_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(UnreadablePicture, match=r"^tile 3$"), atomic_write(tmp_path / "a"):
        raise UnreadablePicture("tile 3")


def test_folder_without_permission_is_a_typed_error(public: Path) -> None:
    (public / "ledger.json").write_text("old")
    with without_permission(public), pytest.raises(WriteFailed, match="You may not write there"):  # noqa: SIM117
        with atomic_write(public / "ledger.json") as temporary:
            temporary.write_text("new")
    assert (public / "ledger.json").read_text() == "old"
    assert os.listdir(public) == ["ledger.json"]


LIMITED = """
import resource, sys
from pathlib import Path
from stainbridge.errors import WriteFailed
from stainbridge.io import atomic_write

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with atomic_write(sys.argv[1]) as temporary:
        temporary.write_bytes(bytes(1_000_000))
except WriteFailed as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file size are POSIX")
def test_write_that_the_system_stops_midway_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_text("old")
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "weights.bin")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "A limit on the size of files stopped it" in done.stdout
    assert (tmp_path / "weights.bin").read_text() == "old"
    assert os.listdir(tmp_path) == ["weights.bin"]


def test_windows_where_folders_cannot_be_opened_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open, opened = os.open, []

    def windows_open(path: Path, flags: int, *rest: Any, **more: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        opened.append((Path(path).name, flags & os.O_RDWR))
        return really_open(path, flags, *rest, **more)

    monkeypatch.setattr(atomic, "_WINDOWS", True)
    monkeypatch.setattr(atomic.os, "open", windows_open)
    with atomic_write(tmp_path / "ledger.json") as temporary:
        temporary.write_text("new")
    with atomic_folder(tmp_path / "out", mark="summary.json") as new:
        (new / "summary.json").write_text("{}")
    assert sorted(os.listdir(tmp_path)) == ["ledger.json", "out"]
    # Windows flushes only what was opened for writing.
    assert len(opened) == 2
    assert all(flag == os.O_RDWR for _, flag in opened)


KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
from stainbridge.io import atomic
from stainbridge.io.atomic import atomic_folder, take_back

place, way = Path(sys.argv[1]), sys.argv[2]
if way == "refused":
    atomic._renameat2 = lambda: lambda *_: -1
elif way == "missing":
    atomic._renameat2 = lambda: None
folder = place / "out"


def write(text):
    with atomic_folder(folder, overwrite=True, mark="a") as new:
        for name in "ab":
            (new / name).write_text(text)


def kill_at(line):
    seen = 0

    def local(frame, event, _):
        nonlocal seen
        seen += event == "line"
        if seen == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return local

    sys.settrace(lambda frame, event, _: local if frame.f_code.co_filename == atomic.__file__ else None)


found = []
for line in range(1, 1000):
    shutil.rmtree(place)
    place.mkdir()
    write("old")
    child = os.fork()
    if not child:
        kill_at(line)
        write("new")
        os._exit(0)
    killed = os.waitpid(child, 0)[1] != 0
    missing = not folder.exists()
    take_back(folder)
    found.append([missing, *((folder / name).read_text() for name in "ab")])
    if not killed:
        break
print(json.dumps(found))
"""


def killed_everywhere(place: Path, way: str) -> list[list[Any]]:
    """Return, for a kill at each line of the program and for none, whether the folder was missing and what its files then said."""
    place.mkdir()
    command = [sys.executable, "-c", KILLED, str(place), way]
    found: list[list[Any]] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(found) > 30
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged on Linux")
def test_a_replaced_folder_is_never_missing_wherever_the_process_is_killed(tmp_path: Path) -> None:
    if not exchanges(tmp_path):
        pytest.skip("this file system or C library does not exchange folders")
    found = killed_everywhere(tmp_path / "here", "exchanged")
    assert {tuple(one) for one in found} == {(False, "old", "old"), (False, "new", "new")}
    assert found[0][1] == "old"
    assert found[-1][1] == "new"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("way", ["refused", "missing"])
def test_where_folders_are_not_exchanged_the_older_one_is_taken_back(tmp_path: Path, way: str) -> None:
    found = killed_everywhere(tmp_path / "here", way)
    assert {tuple(one) for one in found} == {
        (False, "old", "old"), (True, "old", "old"), (False, "new", "new")
    }  # fmt: skip
    assert found[-1] == [False, "new", "new"]


def exchanges(place: Path) -> bool:
    one, other = place / "one", place / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).write_text("")
    return atomic._exchanged(one, other) and (one / "other").exists() and (other / "one").exists()


def moved_aside(place: Path, token: str, text: str) -> None:
    (place / f".out.old-{token}").mkdir()
    (place / f".out.old-{token}" / "summary.json").write_text(text)


def test_of_several_older_folders_the_last_one_is_taken_back(tmp_path: Path) -> None:
    for token, text in (("ffffffff", "first"), ("00000000", "last")):
        moved_aside(tmp_path, token, text)
    (tmp_path / ".another.old-00000001").mkdir()
    take_back(tmp_path / "out")
    assert (tmp_path / "out" / "summary.json").read_text() == "last"
    take_back(tmp_path / "out")
    take_back(tmp_path / "nowhere" / "out")
    assert sorted(os.listdir(tmp_path)) == [".another.old-00000001", ".out.old-ffffffff", "out"]
    take_all_back(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".out.old-ffffffff", "another", "out"]


def test_an_older_folder_that_was_moved_aside_is_not_written_over_unasked(tmp_path: Path) -> None:
    moved_aside(tmp_path, "0a1b2c3d", "old")
    with pytest.raises(OutputExists, match="exists already"):
        check_vacant(tmp_path / "out", overwrite=False, mark="summary.json")
    assert (tmp_path / "out" / "summary.json").read_text() == "old"


def test_where_nothing_can_be_put_back_the_folder_counts_as_missing(public: Path) -> None:
    moved_aside(public, "0a1b2c3d", "old")
    with without_permission(public):
        check_vacant(public / "out", overwrite=False, mark="summary.json")
    assert os.listdir(public) == [".out.old-0a1b2c3d"]
