"""Grids cover a picture once; canvases give back what was written, in memory and on disk."""

import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stainbridge import tiling
from stainbridge.errors import ConfigError, WriteFailed
from stainbridge.tiling import Canvas, Window, tiles

sizes = st.integers(1, 300)


@settings(max_examples=30)
@given(shape=st.tuples(sizes, sizes), core=st.integers(1, 128), halo=st.integers(0, 64), shift=st.integers(0, 127))
def test_every_pixel_lies_in_exactly_one_core(shape, core, halo, shift):
    owners = np.zeros(shape, int)
    for tile in tiles(shape, core, halo, offset=(shift % core, shift % core)):
        owners[tile.core.slices] += 1
    assert (owners == 1).all()


@settings(max_examples=30)
@given(shape=st.tuples(sizes, sizes), core=st.integers(1, 128), halo=st.integers(0, 64))
def test_outer_windows_lie_inside_the_picture_and_hold_the_core_with_its_halo(shape, core, halo):
    for tile in tiles(shape, core, halo):
        for start, length, limit, own, own_length in (
            (tile.outer.y, tile.outer.height, shape[0], tile.core.y, tile.core.height),
            (tile.outer.x, tile.outer.width, shape[1], tile.core.x, tile.core.width),
        ):
            assert 0 <= start <= max(own - halo, 0)
            assert min(own + own_length + halo, limit) <= start + length <= limit


@settings(max_examples=30)
@given(shape=st.tuples(sizes, sizes), core=st.integers(1, 128), halo=st.integers(0, 64))
def test_all_outer_windows_have_one_size(shape, core, halo):
    assert len({(tile.outer.height, tile.outer.width) for tile in tiles(shape, core, halo)}) == 1


def test_a_core_without_pixels_is_refused():
    with pytest.raises(ConfigError, match="core of at least 1 px and a halo of at least 0; found 0 and 8"):
        tiles((10, 10), 0, 8)


@pytest.fixture(params=["memory", "file"])
def backing(request, monkeypatch):
    if request.param == "file":
        monkeypatch.setattr(tiling, "IN_MEMORY_PX", 0)


@pytest.mark.parametrize(("channels", "dtype"), [((), np.int32), ((3,), np.uint8)])
def test_a_canvas_gives_back_what_was_written(backing, channels, dtype):
    rng = np.random.default_rng(0)
    canvas, expected = Canvas((70, 90, *channels), dtype), np.zeros((70, 90, *channels), dtype)
    for _ in range(30):
        y, x, h, w = rng.integers((0, 0, 1, 1), (60, 80, 10, 10))
        block = rng.integers(0, 200, (h, w, *channels)).astype(dtype)
        canvas.write(int(y), int(x), block)
        expected[y : y + h, x : x + w] = block
    assert np.array_equal(canvas.read(0, 0, 70, 90), expected)
    assert np.array_equal(canvas.read(13, 21, 30, 40), expected[13:43, 21:61])
    assert np.array_equal(np.asarray(canvas), expected)


def test_what_a_canvas_returns_is_a_copy(backing):
    canvas = Canvas((8, 8), np.int32)
    canvas.read(0, 0, 8, 8)[:] = 7
    assert not canvas.read(0, 0, 8, 8).any()


def test_the_temporary_file_goes_with_the_canvas(monkeypatch, tmp_path):
    monkeypatch.setattr(tiling, "IN_MEMORY_PX", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    canvas = Canvas((8, 8), np.int32)
    file = canvas._file
    assert os.fstat(file.fileno()).st_size == 8 * 8 * 4
    del canvas
    assert file.closed
    assert os.listdir(tmp_path) == []


KILLED = """
import os, signal
import numpy as np
from stainbridge import tiling

tiling.IN_MEMORY_PX = 0
canvas = tiling.Canvas((1000, 1000), np.int32)
canvas.write(0, 0, np.ones((1000, 1000), np.int32))
assert canvas.read(5, 5, 10, 10).all()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_killed_process_leaves_no_temporary_file(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-9, "")
    assert os.listdir(tmp_path) == []


class Stub:
    """The file of a canvas, with some of its methods replaced."""

    def __init__(self, file, **replaced):
        self._file = file
        vars(self).update(replaced)

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_reads_and_writes_that_stop_early_are_taken_up_again(monkeypatch):
    monkeypatch.setattr(tiling, "IN_MEMORY_PX", 0)
    canvas = Canvas((20, 30), np.int32)
    file = canvas._file
    canvas._file = Stub(file, write=lambda data: file.write(data[:7]), readinto=lambda data: file.readinto(data[:5]))
    block = np.arange(600, dtype=np.int32).reshape(20, 30)
    canvas.write(0, 0, block)
    assert np.array_equal(canvas.read(0, 0, 20, 30), block)


def test_a_canvas_needs_no_call_that_windows_lacks(monkeypatch):
    monkeypatch.setattr(tiling, "IN_MEMORY_PX", 0)
    for name in ("pread", "preadv", "pwrite", "pwritev"):
        monkeypatch.delattr(os, name, raising=False)
    canvas = Canvas((4, 5), np.int32)
    canvas.write(1, 2, np.full((2, 3), 7, np.int32))
    assert canvas.read(0, 0, 4, 5).sum() == 42


def test_a_full_disk_is_an_error_that_names_tmpdir(monkeypatch):
    monkeypatch.setattr(tiling, "IN_MEMORY_PX", 0)
    canvas = Canvas((8, 8), np.int32)

    def full(*_):
        raise OSError(28, "No space left on device")

    canvas._file = Stub(canvas._file, write=full)
    with pytest.raises(WriteFailed, match=r"No space left on device.*\n.*TMPDIR"):
        canvas.write(0, 0, np.ones((4, 4), np.int32))


def test_a_temporary_folder_that_is_missing_is_an_error_that_names_tmpdir(monkeypatch, tmp_path):
    monkeypatch.setattr(tiling, "IN_MEMORY_PX", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(WriteFailed, match=r"gone could not take a working copy.*\n.*TMPDIR"):
        Canvas((8, 8), np.int32)


def test_a_window_knows_its_place_in_another():
    assert Window(10, 20, 5, 6).relative_to(Window(8, 15, 50, 50)) == Window(2, 5, 5, 6)


@settings(max_examples=30)
@given(shape=st.tuples(sizes, sizes), core=st.integers(1, 30), halo=st.integers(0, 16), multiple=st.integers(1, 8))
def test_outer_windows_start_at_a_multiple_and_hold_the_core_with_its_halo(shape, core, halo, multiple):
    core, halo = core * multiple, halo * multiple
    owners = np.zeros(shape, int)
    for tile in tiles(shape, core, halo, multiple_of=multiple):
        assert (tile.outer.y % multiple, tile.outer.x % multiple) == (0, 0)
        owners[tile.core.slices] += 1
        for start, length, limit, own, own_length in (
            (tile.outer.y, tile.outer.height, shape[0], tile.core.y, tile.core.height),
            (tile.outer.x, tile.outer.width, shape[1], tile.core.x, tile.core.width),
        ):
            assert 0 <= start <= max(own - halo, 0)
            assert min(own + own_length + halo, limit) <= start + length <= limit
            assert min(core + 2 * halo, limit) - length < multiple
    assert (owners == 1).all()


@pytest.mark.parametrize(("core", "halo"), [(10, 4), (8, 3)])
def test_a_grid_between_two_multiples_is_refused(core, halo):
    with pytest.raises(ConfigError, match=rf"multiples of 4 px; found {core}, {halo} and \(0, 0\)"):
        tiles((50, 50), core, halo, multiple_of=4)


def test_what_is_added_to_a_canvas_is_summed(backing):
    canvas = Canvas((6, 7, 3), np.uint16)
    canvas.add(1, 2, np.full((3, 4, 3), 300, np.uint16))
    canvas.add(2, 0, np.full((2, 5, 3), 11, np.uint16))
    found = canvas.read(0, 0, 6, 7)
    assert (found[1, 3, 0], found[2, 3, 1], found[2, 0, 2], found[0, 0, 0]) == (300, 311, 11, 0)
    assert found.sum() == 3 * (300 * 12 + 11 * 10)
