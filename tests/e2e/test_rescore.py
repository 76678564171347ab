"""Rescoring again and again: what is written down is what is in force, and nothing is lost."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image as Pillow

import stainbridge
from stainbridge.errors import ConfigError, MissingExtra
from stainbridge.io import save
from stainbridge.rescoring import rescore_folder
from stainbridge.testing.synthetic import synthetic_ihc

CUTS = (0.1, 0.3, 0.5)
ASIDE = "overlay_before_rescoring.png"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A picture and its result."""
    home = tmp_path_factory.mktemp("rescore")
    pixels = synthetic_ihc(shape=(256, 300), nuclei=30, seed=0).source.pixels
    Pillow.fromarray(pixels).save(home / "a.png")
    save(stainbridge.run(home / "a.png", segmenter="baseline", mpp=0.25), home / "out")
    save(stainbridge.run(pixels, segmenter="baseline", mpp=0.25), home / "array")
    return home


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine / "out", tmp_path / "out")


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def rescored(folder, **options):
    (one,) = rescore_folder(folder, **options)
    assert one.scores["rescored"]["by"] == one.scores["sensitivity"]["by"]
    found = summary(folder)["scores"]["rescored"]
    assert found == one.scores["rescored"]
    return found


def test_what_was_not_changed_is_written_down_as_the_run_had_it(folder):
    run = summary(folder)["provenance"]
    threshold, cuts = run["segmentation"]["threshold"], run["segmentation"]["grade_cuts"]
    assert rescored(folder, grade_cuts=CUTS) == {"by": "p_positive", "threshold": threshold, "grade_cuts": [*CUTS]}
    assert rescored(folder, grade_cuts=tuple(cuts)) == {"by": "p_positive", "threshold": threshold, "grade_cuts": cuts}
    assert rescored(folder, threshold=0.7) == {"by": "p_positive", "threshold": 0.7, "grade_cuts": cuts}


def test_a_second_rescoring_keeps_what_the_first_set(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    rescored(folder, by="dab_od_mean", threshold=0.3)
    expected = {"by": "dab_od_mean", "threshold": 0.3, "grade_cuts": [*CUTS]}
    assert rescored(folder, grade_cuts=CUTS) == expected
    rescored(other, grade_cuts=CUTS)
    assert rescored(other, by="dab_od_mean", threshold=0.3) == expected
    both = shutil.copytree(other, tmp_path / "both")
    assert rescored(both, by="dab_od_mean", threshold=0.3, grade_cuts=CUTS) == expected
    assert summary(folder) == summary(other) == summary(both)


def test_rescoring_as_the_run_did_changes_no_nucleus(folder, pristine):
    run = summary(folder)["provenance"]
    rescored(folder, by="dab_od_mean", threshold=0.1, grade_cuts=CUTS)
    assert (folder / "nuclei.csv").read_bytes() != (pristine / "out" / "nuclei.csv").read_bytes()
    rescored(folder, threshold=run["segmentation"]["threshold"], grade_cuts=tuple(run["segmentation"]["grade_cuts"]))
    for name in ("nuclei.csv", "nuclei.geojson", "overlay.png", "labels.ome.tif"):
        assert (folder / name).read_bytes() == (pristine / "out" / name).read_bytes(), name


def test_rescoring_without_a_change_is_refused_and_says_what_can_be_changed(folder):
    before = (folder / "summary.json").read_bytes()
    with pytest.raises(ConfigError, match=r"nothing was given.\nPass --threshold .*--by COLUMN.*--grade-cuts"):
        rescore_folder(folder)
    with pytest.raises(ConfigError, match="'dab_od_mean' needs a threshold"):
        rescore_folder(folder, by="dab_od_mean")
    assert (folder / "summary.json").read_bytes() == before


@pytest.mark.parametrize("kind", ["gone", "changed", "unreadable", "array"])
def test_an_overlay_that_cannot_be_drawn_again_is_kept_and_the_note_names_it(pristine, tmp_path, kind, monkeypatch):
    folder = shutil.copytree(pristine / ("array" if kind == "array" else "out"), tmp_path / "out")
    overlay = (folder / "overlay.png").read_bytes()
    if kind in ("gone", "changed"):
        path = tmp_path / "a.png"
        if kind == "changed":
            path.write_bytes(b"another picture")
        written = summary(folder)
        written["provenance"]["input"]["path"] = str(path)
        (folder / "summary.json").write_text(json.dumps(written))
    if kind == "unreadable":
        monkeypatch.setattr("stainbridge.rescoring.open_picture", _no_reader)
    (one,) = rescore_folder(folder, threshold=0.7)
    assert ASIDE in one.note
    assert (folder / ASIDE).read_bytes() == overlay
    assert not (folder / "overlay.png").exists()


def _no_reader(*_, **__):
    raise MissingExtra("no OpenSlide")


def test_the_picture_that_is_there_gives_a_new_overlay_and_no_note(folder):
    overlay = (folder / "overlay.png").read_bytes()
    (one,) = rescore_folder(folder, threshold=1.0)
    assert one.note == ""
    assert (folder / "overlay.png").read_bytes() != overlay
    assert not (folder / ASIDE).exists()


@pytest.mark.heavy
def test_python_m_stainbridge_is_the_command_line(folder):
    command = [sys.executable, "-m", "stainbridge", "rescore", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "ConfigError: Rescoring needs something to change" in done.stderr
    done = subprocess.run([*command, "--threshold", "0.7"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert summary(folder)["scores"]["rescored"]["threshold"] == 0.7
