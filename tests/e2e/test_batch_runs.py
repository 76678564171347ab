"""Many pictures in one folder: what is finished is kept, what failed is a row, and no row is ever lost."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image as Pillow

from stainbridge import cli
from stainbridge.batch import run_batch
from stainbridge.config import RunConfig
from stainbridge.testing.synthetic import synthetic_ihc
from stainbridge_plugins.baseline.segmenter import Watershed

CONFIG = RunConfig(mpp=0.5, segmenter="baseline", bootstraps=10)


def draw(path, seed=0):
    Pillow.fromarray(synthetic_ihc(shape=(96, 96), nuclei=6, seed=seed).source.pixels).save(path, format="png")
    return path


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "in").mkdir()
    return [draw(tmp_path / "in" / f"{name}.png", seed) for seed, name in enumerate("ab")]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def stain(monkeypatch, capsys):
    """Run the command line with the baseline; return (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["stainbridge", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


def ledger(out):
    with open(out / "ledger.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fail_at(monkeypatch, call, error):
    """Let the baseline raise `error` when it is called for the `call`-th time."""
    segment, calls = Watershed.segment, []

    def segment_or_fail(self, batch):
        calls.append(1)
        if len(calls) == call:
            raise error
        return segment(self, batch)

    monkeypatch.setattr(Watershed, "segment", segment_or_fail)


def resume(pictures, out, **changes):
    return list(run_batch(pictures, out, CONFIG.replace(**changes), existing="resume"))


def test_resume_keeps_the_same_picture_with_its_counts(pictures, out):
    done = list(run_batch(pictures, out, CONFIG))
    kept = resume(pictures, out, offline=True)
    assert [entry.status for entry in kept] == ["kept", "kept"]
    for before, after in zip(done, kept, strict=True):
        assert (after.nuclei, after.positive) == (before.nuclei, before.positive)
        assert (after.percent_positive, after.seconds) == (before.percent_positive, before.seconds)
    assert kept[0].nuclei > 0
    assert int(ledger(out)[0]["nuclei"]) == kept[0].nuclei


def test_resume_does_not_keep_another_picture_of_that_name(pictures, out):
    list(run_batch(pictures, out, CONFIG))
    before = (out / "a" / "summary.json").read_bytes()
    draw(pictures[0], seed=7)
    changed, same = resume(pictures, out)
    assert (changed.status, same.status) == ("failed", "kept")
    assert "the picture" in changed.error
    assert "--overwrite" in changed.error
    assert (out / "a" / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 5}, "seed (0 there, 5 now)"),
        ({"mpp": 0.25}, "mpp (0.5 there, 0.25 now)"),
        ({"mpp": None}, "mpp (0.5 there, None now)"),
        ({"classifier": "dab"}, "classifier.name ('hsi' there, 'dab' now)"),
        ({"grade_cuts": (0.1, 0.4, 0.6)}, "grade_cuts (None there, [0.1, 0.4, 0.6] now)"),
        (
            {"segmenter": {"name": "baseline", "least_area_um2": 21.0}},
            "segmenter.least_area_um2 (None there, 21.0 now)",
        ),
    ],
)
def test_resume_does_not_keep_other_settings(pictures, out, changes, said):
    list(run_batch(pictures[:1], out, CONFIG))
    (entry,) = resume(pictures[:1], out, **changes)
    assert entry.status == "failed"
    assert said in entry.error
    assert entry.error.count(" there, ") == 1
    assert "the picture" not in entry.error
    assert "--overwrite" in entry.error


def test_a_scale_that_is_now_given_but_was_the_pictures_own_is_the_same(tmp_path, out):
    picture = tmp_path / "a.tif"
    pixels = synthetic_ihc(shape=(96, 96), nuclei=6, seed=0).source.pixels
    Pillow.fromarray(pixels).save(picture, resolution=20000, resolution_unit="cm")
    assert next(run_batch([picture], out, CONFIG.replace(mpp=None))).status == "done"
    assert resume([picture], out)[0].status == "kept"


@pytest.mark.parametrize("text", ["", "[]", '{"provenance": {"input": {}, "config": []}, "scores": {"counts": {}}}'])
def test_resume_does_not_keep_a_damaged_result(pictures, out, text):
    list(run_batch(pictures, out, CONFIG))
    (out / "a" / "summary.json").write_text(text)
    damaged, whole = resume(pictures, out)
    assert (damaged.status, whole.status) == ("failed", "kept")
    assert "missing or damaged" in damaged.error
    assert "--overwrite" in damaged.error


def test_a_picture_that_is_gone_cannot_be_kept(pictures, out):
    list(run_batch(pictures, out, CONFIG))
    pictures[0].unlink()
    gone, _ = resume(pictures, out)
    assert gone.status == "failed"
    assert "cannot be read" in gone.error


@pytest.mark.parametrize("existing", ["resume", "overwrite"])
def test_rows_of_other_pictures_stay_in_the_ledger_in_order(pictures, out, existing):
    list(run_batch(pictures, out, CONFIG))
    before = ledger(out)
    more = draw(pictures[0].with_name("c.png"), seed=3)
    list(run_batch([more, pictures[0]], out, CONFIG, existing=existing))
    after = ledger(out)
    assert [row["folder"] for row in after] == ["a", "b", "c"]
    assert after[1] == before[1]
    assert after[0]["status"] == {"resume": "kept", "overwrite": "done"}[existing]


def test_a_ledger_that_is_not_ours_does_not_stop_a_run(pictures, out):
    out.mkdir()
    (out / "ledger.csv").write_bytes(b"\xff\0mine")
    assert [entry.status for entry in resume(pictures, out)] == ["done", "done"]
    assert [row["folder"] for row in ledger(out)] == ["a", "b"]


def test_a_name_that_is_not_utf8_does_not_end_the_batch(pictures, stain, out):
    folder = pictures[0].parent
    name = os.fsencode(folder / "Z") + b"\xff.png"
    try:
        Path(os.fsdecode(name)).write_bytes(pictures[0].read_bytes())
    except OSError:
        pytest.skip("this file system takes no name that is not UTF-8")
    draw(folder / "zz.png", seed=4)
    code, stdout, _ = stain("run", folder, "--mpp", 0.5, "--segmenter", "baseline", "-o", out, "--json")
    rows = {row["folder"]: row["status"] for row in ledger(out)}
    odd = rows.pop("Z\\udcff")
    assert odd in ("done", "failed")
    assert rows == {"a": "done", "b": "done", "zz": "done"}
    assert code == (odd == "failed")
    shown = [Path(entry["picture"]).name for entry in json.loads(stdout)]
    assert sorted(shown) == ["Z\\udcff.png", "a.png", "b.png", "zz.png"]


def test_a_plugin_that_exits_is_one_failed_picture(pictures, out, monkeypatch):
    fail_at(monkeypatch, 1, SystemExit(3))
    first, second = run_batch(pictures, out, CONFIG)
    assert (first.status, first.error) == ("failed", "SystemExit: 3")
    assert second.status == "done"


def test_an_interrupted_run_says_what_is_finished(pictures, stain, out, monkeypatch):
    fail_at(monkeypatch, 2, KeyboardInterrupt())
    arguments = ["run", *pictures, "--mpp", 0.5, "--segmenter", "baseline", "-o", out]
    code, stdout, stderr = stain(*arguments)
    assert code == 130
    assert stdout == ""
    assert "Interrupted: 1 of 2 pictures are finished" in stderr
    assert "--resume" in stderr
    assert [row["status"] for row in ledger(out)] == ["done"]
    assert sorted(path.name for path in out.iterdir()) == ["a", "ledger.csv"]
    assert stain(*arguments, "--resume")[0] == 0
    assert [row["status"] for row in ledger(out)] == ["kept", "done"]


def test_a_picture_called_like_the_ledger_has_a_visible_folder_beside_it(tmp_path, out):
    pictures = [draw(tmp_path / "ledger.csv.png"), draw(tmp_path / ".hid.png")]
    assert [entry.status for entry in run_batch(pictures, out, CONFIG)] == ["done", "done"]
    assert sorted(path.name for path in out.iterdir()) == ["hid", "ledger.csv", "ledger.csv.png"]


@pytest.mark.parametrize("of_one", [False, True])
def test_rescoring_brings_the_ledger_up_to_date(pictures, stain, out, of_one):
    list(run_batch(pictures, out, CONFIG))
    before = ledger(out)
    assert stain("rescore", out / "a" if of_one else out, "--threshold", 0)[0] == 0
    after = ledger(out)
    assert after[0]["positive"] == after[0]["nuclei"] == before[0]["nuclei"]
    assert after[0]["percent_positive"] == "100.0"
    assert (after[1] == before[1]) is of_one


def test_nothing_is_segmented_where_the_folder_cannot_be_written(pictures, stain, tmp_path, monkeypatch):
    fail_at(monkeypatch, 1, AssertionError("segmented"))
    (tmp_path / "file").write_text("mine")
    code, stdout, stderr = stain("run", *pictures, "--mpp", 0.5, "-o", tmp_path / "file" / "out")
    assert code == 2
    assert "WriteFailed" in stderr
    assert stdout == ""


def test_an_unfinished_folder_is_refused_before_it_is_segmented(pictures, out, monkeypatch):
    fail_at(monkeypatch, 1, AssertionError("segmented"))
    (out / "a").mkdir(parents=True)
    (out / "a" / "notes.txt").write_text("mine")
    (entry,) = run_batch(pictures[:1], out, CONFIG, existing="overwrite")
    assert entry.error.startswith("OutputExists")
