"""Files that appear whole or not at all."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stainbridge.errors import UnreadablePicture, WriteFailed
from stainbridge.io import atomic, atomic_write
from stainbridge.io.atomic import atomic_folder


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
