"""Result folders: what is in them, that they are whole, and that the same result gives the same bytes."""

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from pyarrow import parquet

from stainbridge.errors import OutputExists, UnreadablePicture, WriteFailed
from stainbridge.io import (
    Rewritten,
    atomic,
    check_output,
    load_nuclei,
    open_labels,
    open_picture,
    results,
    rewrite_scores,
    save,
)
from stainbridge.io import overlay as overlay_module
from stainbridge.io.overlay import COLOURS
from stainbridge.io.tiles import write_labels
from stainbridge.measure import boxes, regions
from stainbridge.records import RGB, Image, LabelMap, Labels, Nuclei, Result
from stainbridge.testing.synthetic import synthetic_ihc

FILES = ["labels.ome.tif", "nuclei.csv", "nuclei.geojson", "nuclei.parquet", "overlay.png", "summary.json"]


def nuclei_of(labels: LabelMap, positive: np.ndarray) -> Nuclei:
    n = len(positive)
    table = regions(labels)
    return Nuclei(
        label=np.arange(1, n + 1, dtype=np.int32),
        y=table.y,
        x=table.x,
        area_um2=table.area_px * 0.0625,
        box=boxes(labels),
        p_positive=np.where(positive, 0.9, 0.1),
        positive=positive,
        grade=np.zeros(n, np.int8),
        clipped=np.zeros(n, bool),
        features={"dab_od_mean": np.linspace(0, 1, n) / 3},
    )


@pytest.fixture(scope="module")
def result() -> Result:
    sample = synthetic_ihc(shape=(150, 230), nuclei=12)
    assert sample.positive is not None
    nuclei = nuclei_of(sample.truth.array, sample.positive)
    he = Image(255 - sample.source.read(0, 0, 150, 230), 0.25, "he")
    scores = {"percent_positive": np.float64(32.0), "interval": (1, float("nan"))}
    return Result(sample.source, sample.truth, nuclei, he, scores, {"seed": 0, "device": "cpu"})


@pytest.fixture(scope="module")
def pristine(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(result, tmp_path_factory.mktemp("saved") / "out")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_folder_holds_everything(result: Result, tmp_path: Path) -> None:
    folder = save(result, tmp_path / "new" / "out")
    assert folder == tmp_path / "new" / "out"
    assert sorted(os.listdir(folder)) == sorted([*FILES, "virtual_he.png"])
    assert os.listdir(tmp_path / "new") == ["out"]
    assert "virtual_he.png" not in os.listdir(save(replace(result, he=None), tmp_path / "untranslated"))


def test_labels_come_back_with_their_scale(result: Result, folder: Path) -> None:
    path = folder / "labels.ome.tif"
    labels = open_labels(path)
    assert labels.mpp == pytest.approx(0.25)
    assert np.array_equal(labels.read(0, 0, 150, 230), np.asarray(result.labels))
    with tifffile.TiffFile(path) as file:
        assert (file.pages[0].dtype, file.is_ome) == (np.uint16, True)


def test_more_labels_than_16_bits_hold_are_written_in_32(tmp_path: Path) -> None:
    labels = np.arange(1, 70_001, dtype=np.int32).reshape(250, 280)
    write_labels(tmp_path / "a.ome.tif", Labels(labels), 70_000)
    assert tifffile.imread(tmp_path / "a.ome.tif").dtype == np.uint32
    assert np.array_equal(open_labels(tmp_path / "a.ome.tif").read(0, 0, 250, 280), labels)


def test_nuclei_come_back_exactly(result: Result, folder: Path) -> None:
    nuclei, summary = load_nuclei(folder)
    for name, column in result.nuclei.columns().items():
        assert nuclei.columns()[name].dtype == column.dtype
        assert np.array_equal(nuclei.columns()[name], column), name
    assert summary["scores"] == {"percent_positive": 32.0, "interval": [1, None]}
    assert summary["provenance"] == {"seed": 0, "device": "cpu"}
    for name, sha256 in summary["files"].items():
        assert sha256 == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert sorted([*summary["files"], "summary.json"]) == sorted(os.listdir(folder))


def test_csv_says_what_parquet_says(result: Result, folder: Path) -> None:
    table = parquet.read_table(folder / "nuclei.parquet")
    with open(folder / "nuclei.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == table.column_names == list(result.nuclei.columns())
    assert [float(row["dab_od_mean"]) for row in rows] == table["dab_od_mean"].to_pylist()
    assert [row["positive"] == "true" for row in rows] == table["positive"].to_pylist()


def test_overlay_shows_positive_red_and_negative_blue_around_untouched_pixels(result: Result, folder: Path) -> None:
    overlay = np.asarray(Pillow.open(folder / "overlay.png"))
    labels, ihc = np.asarray(result.labels), result.source.read(0, 0, 150, 230)
    changed = (overlay != ihc).any(axis=2)
    assert not changed[labels == 0].any()
    for row, label in enumerate(result.nuclei.label):
        outline = changed & (labels == label)
        assert outline.any()
        assert (overlay[outline] == COLOURS[bool(result.nuclei.positive[row])]).all()
        inside = np.argwhere(labels == label).mean(axis=0).round().astype(int)
        assert not changed[tuple(inside)]


def test_same_result_gives_the_same_bytes(result: Result, tmp_path: Path) -> None:
    assert contents(save(result, tmp_path / "a")) == contents(save(result, tmp_path / "b"))


def identities(folder: Path) -> list[str]:
    with tifffile.TiffFile(folder / "labels.ome.tif") as file:
        assert file.ome_metadata is not None
        uuids = re.findall(r'UUID="(urn:uuid:[0-9a-f-]{36})"', file.ome_metadata)
    assert len(set(uuids)) == 1
    return [*set(uuids), *(one["id"] for one in json.loads((folder / "nuclei.geojson").read_text())["features"])]


@pytest.mark.parametrize("key", ["sha256", "sha256_of_pixels", "name"])
def test_ids_differ_between_pictures_and_stay_when_rescored(result: Result, tmp_path: Path, key: str) -> None:
    found = []
    for picture in ("a", "b"):
        named = replace(result, source=Image(result.source.read(0, 0, 150, 230), 0.25, picture))
        provenance = {} if key == "name" else {"input": {key: picture * 64, "name": "same"}}
        folder = save(replace(named, provenance=provenance), tmp_path / picture)
        found.append(identities(folder))
        changed = Nuclei.from_columns(result.nuclei.columns() | {"positive": ~result.nuclei.positive})
        rewrite_scores(folder, changed, {}, provenance)
        assert identities(folder) == found[-1]
    assert len(found[0]) == 13
    assert not set(found[0]) & set(found[1])


def test_picture_without_nuclei_is_saved_and_loaded(tmp_path: Path) -> None:
    labels = np.zeros((40, 50), np.int32)
    source = Image(np.full((40, 50, 3), 240, np.uint8), 0.25)
    nuclei = nuclei_of(labels, np.zeros(0, bool))
    loaded, _ = load_nuclei(save(Result(source, Labels(labels), nuclei, None, {}, {}), tmp_path / "out"))
    assert len(loaded) == 0


def test_folder_that_exists_is_kept(result: Result, folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    with pytest.raises(OutputExists, match="exists already"):
        check_output(folder)
    check_output(folder, overwrite=True)
    check_output(folder / "other")
    with pytest.raises(OutputExists, match=r"out' exists already.\nPass --overwrite"):
        save(replace(result, he=None), folder)
    assert contents(folder) == before
    save(replace(result, he=None), folder, overwrite=True)
    assert "virtual_he.png" not in contents(folder)
    assert os.listdir(tmp_path) == ["out"]


def test_overwriting_never_touches_what_is_not_a_result(result: Result, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("also")
    with pytest.raises(OutputExists, match=r"is not an older result \(it holds no summary.json\)"):
        save(result, tmp_path / "thesis", overwrite=True)
    with pytest.raises(OutputExists, match="is not a folder"):
        save(result, tmp_path / "file", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


WRITERS = [
    "write_labels",
    "write_parquet",
    "write_csv",
    "write_geojson",
    "write_overlay",
    "_write_he",
    "_write_summary",
]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("older", [True, False])
def test_full_disk_at_any_writer_leaves_things_as_they_were(
    result: Result, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, older: bool
) -> None:
    folder = tmp_path / "out"
    if older:
        shutil.copytree(pristine, folder)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(results, writer, full)
    with pytest.raises(WriteFailed, match=r"out' could not be written: No space left on device.\nNothing half-written"):
        save(result, folder, overwrite=older)
    assert os.listdir(tmp_path) == (["out"] if older else [])
    assert not older or contents(folder) == contents(pristine)


def test_older_result_comes_back_when_the_last_step_fails(
    result: Result, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    rename = os.rename

    def failing(source: Any, target: Any) -> None:
        if ".partial-" in str(source):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    monkeypatch.setattr(atomic, "_renameat2", lambda: None)
    with pytest.raises(WriteFailed):
        save(replace(result, he=None), folder, overwrite=True)
    assert contents(folder) == before
    assert os.listdir(folder.parent) == ["out"]


LIMITED = """
import resource, sys
import numpy as np
from stainbridge.errors import WriteFailed
from stainbridge.io import open_labels, open_picture, load_nuclei, save
from stainbridge.records import Result

old, new, *limits = sys.argv[1:]
nuclei, summary = load_nuclei(old)
he = open_picture(f"{old}/virtual_he.png")
result = Result(he, open_labels(f"{old}/labels.ome.tif"), nuclei, he, {}, {})
for limit in map(int, limits):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save(result, new)
    except WriteFailed as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file size are POSIX")
def test_write_that_the_system_stops_midway_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    # Each limit lets the smaller files through and stops this one near its end.
    sizes = [(folder / name).stat().st_size for name in ("labels.ome.tif", "nuclei.geojson", "overlay.png")]
    command = [sys.executable, "-c", LIMITED, str(folder), str(tmp_path / "new"), *(str(size - 500) for size in sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("new' could not be written") == 3
    assert done.stdout.count("A limit on the size of files stopped it") == 3
    assert os.listdir(tmp_path) == ["out"]


def test_damage_in_the_picture_is_not_called_a_failed_write(result: Result, tmp_path: Path) -> None:
    class Damaged(Image):
        def read(self, y: int, x: int, height: int, width: int) -> RGB:
            raise UnreadablePicture("tile 3 is damaged")

    source = Damaged(result.source.read(0, 0, 150, 230), 0.25)
    with pytest.raises(UnreadablePicture, match=r"^tile 3 is damaged$"):
        save(replace(result, source=source), tmp_path / "out")
    assert os.listdir(tmp_path) == []


class Striped:
    """A picture that is computed, not held: brown and white stripes of 64 px."""

    name, mpp = "striped", 0.25

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape

    def read(self, y: int, x: int, height: int, width: int) -> RGB:
        stripe = (np.arange(x, x + width) // 64 % 2 * 100 + 100).astype(np.uint8)
        return np.broadcast_to(stripe[None, :, None], (height, width, 3))


class Dotted:
    """Labels that are computed, not held: one square of 20 px in each cell of 400 px."""

    mpp = 0.25

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.columns = shape[1] // 400

    def read(self, y: int, x: int, height: int, width: int) -> LabelMap:
        rows, columns = np.arange(y, y + height)[:, None], np.arange(x, x + width)[None, :]
        ids = rows // 400 * self.columns + columns // 400 + 1
        inside = (
            (rows % 400 < 20)
            & (columns % 400 < 20)
            & (columns < self.columns * 400)
            & (rows < self.shape[0] // 400 * 400)
        )
        return np.where(inside, ids, 0).astype(np.int32)


def test_large_picture_becomes_an_overview_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_module, "OVERVIEW_PX", 900)
    shape = (2450, 3398)
    labels = Dotted(shape)
    y, x = (axis.ravel() * 400 for axis in np.mgrid[: shape[0] // 400, : labels.columns])
    n = len(y)
    zeros = np.zeros(n)
    nuclei = Nuclei(
        label=np.arange(1, n + 1, dtype=np.int32), y=y + 9.5, x=x + 9.5, area_um2=zeros + 25.0,
        box=np.stack([y, x, y + 20, x + 20], axis=1), p_positive=zeros, positive=zeros > 0,
        grade=np.zeros(n, np.int8), clipped=zeros > 0,
    )  # fmt: skip
    he = Striped(shape)
    tracemalloc.start()
    try:
        folder = save(Result(he, labels, nuclei, he, {}, {}), tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 15e6  # the picture is 25 MB and the label map 33 MB
    overview = np.asarray(Pillow.open(folder / "virtual_he.png"))
    assert overview.shape == (613, 850, 3)
    assert np.array_equal(overview[0], he.read(0, 0, 1, shape[1])[0, ::4])
    full = open_picture(folder / "virtual_he.ome.tif")
    assert (full.shape, full.mpp) == (shape, pytest.approx(0.25))
    assert np.array_equal(full.read(500, 2000, 600, 700), he.read(500, 2000, 600, 700))
    overlay = np.asarray(Pillow.open(folder / "overlay.png"))
    assert (overlay[100:105, 200] == COLOURS[False]).all()
    assert (overlay[102, 202] != COLOURS[False]).any()


def test_rewriting_gives_what_a_new_run_would(result: Result, folder: Path, tmp_path: Path) -> None:
    changed = Nuclei.from_columns(result.nuclei.columns() | {"positive": ~result.nuclei.positive})
    scores, provenance = {"percent_positive": 68.0}, {"seed": 0, "threshold": 0.3}
    fresh = replace(result, nuclei=changed, scores=scores, provenance=provenance)
    expected = contents(save(fresh, tmp_path / "fresh"))
    done = rewrite_scores(folder, changed, scores, provenance, source=result.source)
    assert done.outdated == ()
    assert contents(folder) == expected


def test_rewriting_without_the_picture_keeps_the_old_overlay_under_a_name_that_says_so(
    result: Result, folder: Path
) -> None:
    before, aside = contents(folder), "overlay_before_rescoring.png"
    expected = Rewritten(("nuclei.geojson", "nuclei.parquet", "nuclei.csv", "summary.json"), (aside,))
    for _ in range(2):
        assert rewrite_scores(folder, result.nuclei, {}, {}) == expected
        assert (folder / aside).read_bytes() == before["overlay.png"]
        files = json.loads((folder / "summary.json").read_text())["files"]
        assert files[aside] == hashlib.sha256(before["overlay.png"]).hexdigest()
        assert sorted([*files, "summary.json"]) == sorted(os.listdir(folder))
        assert "overlay.png" not in files


def test_an_overlay_that_can_be_drawn_again_takes_the_place_of_the_old_one(result: Result, folder: Path) -> None:
    before = contents(folder)
    rewrite_scores(folder, result.nuclei, {}, {})
    done = rewrite_scores(folder, result.nuclei, result.scores, result.provenance, source=result.source)
    assert done.outdated == ()
    assert contents(folder) == before


@pytest.mark.parametrize("writer", ["rewrite_geojson", "write_parquet", "write_csv", "write_overlay", "_write_summary"])
def test_full_disk_while_rewriting_leaves_whole_files(
    result: Result, folder: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    before = contents(folder)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(results, writer, full)
    with pytest.raises(WriteFailed, match="No space left on device"):
        rewrite_scores(folder, result.nuclei, {}, {}, source=result.source)
    assert contents(folder) == before


def test_other_nuclei_are_refused(result: Result, folder: Path) -> None:
    fewer = Nuclei.from_columns({name: column[:-1] for name, column in result.nuclei.columns().items()})
    with pytest.raises(UnreadablePicture, match="holds 12 nuclei, and not the same as the 11 given"):
        rewrite_scores(folder, fewer, {}, {})


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("nuclei.parquet", None, r"out' holds no result: nuclei.parquet is missing.\nName a folder that a run"),
        ("nuclei.parquet", b"PAR1 and then nothing", r"nuclei.parquet' is damaged"),
        ("summary.json", None, "holds no result: summary.json is missing"),
        ("summary.json", b"{", r"summary.json' is damaged"),
        ("summary.json", b"[]", r"summary.json' lacks scores, provenance or files"),
    ],
)
def test_damaged_result_is_named(folder: Path, name: str, data: bytes | None, message: str) -> None:
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(UnreadablePicture, match=message):
        load_nuclei(folder)


def test_result_that_a_killed_process_moved_aside_is_read_all_the_same(result: Result, folder: Path) -> None:
    folder.rename(folder.with_name(".out.old-0a1b2c3d"))
    assert len(load_nuclei(folder)[0]) == len(result.nuclei)


def test_table_that_lacks_a_column_names_it(folder: Path) -> None:
    parquet.write_table(parquet.read_table(folder / "nuclei.parquet").drop(["grade"]), folder / "nuclei.parquet")
    with pytest.raises(UnreadablePicture, match="has no column 'grade'"):
        load_nuclei(folder)
