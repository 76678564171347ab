"""Folders of a batch have unique names; the ledger is a table of everything that happened."""

import csv
import errno
import json
from pathlib import Path

import pytest

from stainbridge import batch
from stainbridge.batch import Entry, folder_names, refresh_ledger, require_free, run_batch, write_ledger
from stainbridge.config import RunConfig
from stainbridge.errors import ConfigError, OutputExists, UnreadablePicture, WriteFailed


def rows(out):
    with open(out / "ledger.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summarise(folder, total, positive, percent):
    folder.mkdir(parents=True)
    scores = {"counts": {"total": total, "positive": positive}, "percent_positive": percent}
    summary = {"scores": scores, "provenance": {"input": {}, "config": {}}, "files": {}}
    (folder / "summary.json").write_text(json.dumps(summary))


def count_builds(monkeypatch):
    """Return a list that grows when plugins are built."""
    built = []
    monkeypatch.setattr(batch.Stages, "build", lambda config: built.append(config))
    return built


@pytest.mark.parametrize(
    ("pictures", "names"),
    [
        (["a/x.png", "a/y.tif"], ["x", "y"]),
        (["a/x.png", "a/x.tif", "a/y.png"], ["x.png", "x.tif", "y"]),
        (["a/x.png", "b/x.png"], ["a__x.png", "b__x.png"]),
        (["a/x.png", "a/X.png"], ["0001__a__x.png", "0002__a__X.png"]),
        (["p/a/x.png", "q/a/x.png"], ["0001__a__x.png", "0002__a__x.png"]),
        (["a/ledger.csv.png", "a/LEDGER.csv.tif"], ["ledger.csv.png", "LEDGER.csv.tif"]),
        (["a/ledger.csv.png"], ["ledger.csv.png"]),
        (["a/ledger.csv", "a/ledger.png"], ["a__ledger.csv", "ledger.png"]),
        (["a/.hid.png", "a/..png"], ["hid", "png"]),
        (["a/.x.png", "a/x.png", ".b/x.png"], ["a__.x.png", "a__x.png", "b__x.png"]),
    ],
)
def test_each_picture_has_a_folder_of_its_own(pictures, names):
    assert folder_names([Path(picture) for picture in pictures]) == names


def test_the_ledger_keeps_commas_and_line_breaks(tmp_path):
    path = write_ledger([Entry("a,b.png", "a,b", "failed", error="first\nsecond")], tmp_path / "new")
    assert path.read_text().splitlines()[0] == "picture,folder,status,nuclei,positive,percent_positive,seconds,error"
    assert '"a,b.png","a,b",failed,,,,0.0,"first\nsecond"' in path.read_text()


def test_an_unknown_way_with_existing_results_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must be 'refuse', 'overwrite' or 'resume'"):
        next(run_batch([], tmp_path, RunConfig(), existing="ignore"))


def test_a_name_that_is_not_utf8_is_escaped_in_the_ledger(tmp_path):
    write_ledger([Entry("bad\udcff.png", "bad\udcff", "failed", error="no bad\udcff")], tmp_path)
    assert rows(tmp_path)[0]["folder"] == "bad\\udcff"
    assert rows(tmp_path)[0]["error"] == "no bad\\udcff"


def test_refreshing_changes_the_counts_and_nothing_else(tmp_path):
    done = Entry("a.png", "a", "done", nuclei=10, positive=1, percent_positive=10.0, seconds=2.5)
    write_ledger([done, Entry("b.png", "b", "failed", error="no"), Entry("c.png", "c", "done", nuclei=4)], tmp_path)
    summarise(tmp_path / "a", 10, 5, 50.0)
    summarise(tmp_path / "b", 8, 8, 100.0)
    refresh_ledger(tmp_path, [tmp_path / "a", tmp_path / "b"])
    first, failed, other = rows(tmp_path)
    assert [first[name] for name in ("nuclei", "positive", "percent_positive")] == ["10", "5", "50.0"]
    assert (first["status"], first["seconds"]) == ("done", "2.5")
    assert (failed["nuclei"], failed["error"]) == ("", "no")
    assert other["nuclei"] == "4"


def test_refreshing_from_a_damaged_summary_is_an_error(tmp_path):
    write_ledger([Entry("a.png", "a", "done")], tmp_path)
    with pytest.raises(UnreadablePicture, match="missing or damaged"):
        refresh_ledger(tmp_path, [tmp_path / "a"])


@pytest.mark.parametrize("text", [None, "picture,score\nmine,3\n", "\0\0", b"\xff\xfe"])
def test_a_table_that_is_not_a_ledger_is_not_refreshed(tmp_path, text):
    summarise(tmp_path / "a", 1, 1, 100.0)
    if text is not None:
        (tmp_path / "ledger.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    refresh_ledger(tmp_path, [tmp_path / "a"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("existing", ["refuse", "overwrite", "resume"])
def test_a_folder_below_a_file_is_refused_before_plugins_are_built(tmp_path, monkeypatch, existing):
    built = count_builds(monkeypatch)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteFailed, match="Not a directory"):
        next(run_batch([], tmp_path / "file" / "out", RunConfig(), existing=existing))
    assert built == []


def test_an_output_that_is_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputExists, match="is a file"):
        require_free(tmp_path / "out", "overwrite")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "You may not write there"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "No such file"),
    ],
)
def test_a_folder_that_takes_no_file_is_refused_before_plugins_are_built(tmp_path, monkeypatch, error, message):
    def refuse(**_):
        raise error

    built = count_builds(monkeypatch)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(WriteFailed, match=message):
        next(run_batch([Path("a.png")], tmp_path / "new" / "out", RunConfig()))
    assert built == []
    assert list(tmp_path.iterdir()) == []


def test_trying_the_output_leaves_nothing(tmp_path):
    require_free(tmp_path / "new" / "out", "refuse")
    assert list(tmp_path.iterdir()) == []
