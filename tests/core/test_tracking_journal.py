"""What the tracker keeps on disk, without any MLflow."""

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainbridge.errors import ConfigError, WriteFailed
from stainbridge.tracking import metric_name, open_tracker, tracker, value_name
from stainbridge.tracking.journal import Journal
from stainbridge.tracking.names import cut, flat


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def alone(monkeypatch):
    """A world without MLflow."""
    monkeypatch.setattr(tracker, "installed", lambda: False)


def journal_of(folder):
    return [json.loads(line) for line in (folder / "tracking" / "journal.jsonl").read_text().splitlines()]


def test_a_value_name_becomes_one_that_mlflow_allows():
    assert metric_name("matching/f1@0.50") == "matching/f1 at 0.50"
    assert metric_name("a+b") == "a_x2b_b"
    assert metric_name("matching/f1@0.50 low") == "matching/f1 at 0.50 low"


@given(st.one_of(st.text(max_size=12), st.text(alphabet="@ at_x5f61:+/.\n", max_size=14)))
def test_every_value_name_comes_back(name):
    metric = metric_name(name)
    assert value_name(metric) == name
    assert all(one.isalnum() or one in "_-. /" for one in metric)


def test_nested_parameters_become_dotted_and_long_ones_say_that_they_are_cut():
    assert flat({"a": {"b": 1, "c": {"d": "x"}}, "e": {}}) == {"a.b": "1", "a.c.d": "x", "e": "{}"}
    assert cut("x" * 6001, 6000).endswith("(cut; whole in the journal)")
    assert len(cut("x" * 6001, 6000)) == 6000


@pytest.mark.usefixtures("alone")
def test_without_mlflow_everything_is_on_disk_and_the_pip_line_is_said(tmp_path):
    tracking = open_tracker(tmp_path)
    run = tracking.run("a", "first")
    run.params({"lr": 0.1})
    run.metrics({"loss": math.nan}, step=3, time_ms=5)
    run.finish()
    assert [event["do"] for event in journal_of(tmp_path)] == ["run", "params", "metrics", "finish"]
    flushed = tracking.flush()
    assert (flushed.sent, flushed.waiting) == (0, 4)
    assert "pip install 'stainbridge[mlflow]'" in flushed.problem


def test_switched_off_it_writes_nothing(tmp_path):
    with open_tracker(tmp_path, enabled=False) as tracking:
        run = tracking.run("a", "first")
        run.metrics({"loss": 1.0})
        run.table([{"picture": "p"}], "images")
        run.finish()
        assert tracking.flush() == tracking.flush(now=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("uri", ["./mlruns", "/data/mlruns", "file:///data/mlruns", "localhost:5000"])
def test_a_folder_as_store_is_refused_and_a_database_is_named(tmp_path, uri):
    with pytest.raises(ConfigError, match=r"MLflow 3 no longer writes to folders\.\nName a database, sqlite:///"):
        open_tracker(tmp_path, uri=uri)


def test_a_folder_whose_name_no_address_can_hold_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Rename the folder, or name an MLflow store with MLFLOW_TRACKING_URI"):
        open_tracker(tmp_path / "a%20b")


def test_the_store_is_the_argument_then_the_environment_then_beside_the_results(tmp_path, monkeypatch):
    place = tracker._place
    assert place(tmp_path, None, None).uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert place(tmp_path, None, None).artifacts == f"file://{tmp_path}/mlartifacts"
    assert place(tmp_path, "sqlite:////data/all.db", None).artifacts == "file:///data/mlartifacts"
    assert place(tmp_path, "http://host:5000", None).artifacts is None
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the environment")
    assert place(tmp_path, None, None).experiment == "of the environment"
    assert place(tmp_path, None, "of the caller").experiment == "of the caller"


@pytest.mark.usefixtures("alone")
def test_a_torn_last_line_is_passed_over_and_the_next_event_is_whole(tmp_path):
    open_tracker(tmp_path).run("a", "first")
    with (tmp_path / "tracking" / "journal.jsonl").open("ab") as file:
        file.write(b'{"do":"metrics","run":"a","val')
    with open_tracker(tmp_path) as tracking:
        tracking.run("a", "first").metrics({"loss": 1.0})
        events = [event for event, _ in tracking.journal.events()]
    assert [event and event["do"] for event in events] == ["run", None, "run", "metrics"]


@pytest.mark.usefixtures("alone")
def test_work_that_is_done_again_is_not_logged_again(tmp_path):
    for _ in range(3):
        with open_tracker(tmp_path) as tracking:
            run = tracking.run("a", "first")
            for step in range(4):
                run.metrics({"loss": 1 / (1 + step), "nothing": math.nan}, step=step)
    assert sum(event["do"] == "metrics" for event in journal_of(tmp_path)) == 4


@pytest.mark.usefixtures("alone")
def test_files_inside_the_folder_are_noted_relative_so_that_it_may_move(tmp_path):
    run = open_tracker(tmp_path).run("a", "first")
    run.artifact(tmp_path / "figures" / "f.png")
    run.artifact(tmp_path.parent / "elsewhere.png")
    assert [event["path"] for event in journal_of(tmp_path)[1:]] == [
        "figures/f.png",
        str(tmp_path.parent / "elsewhere.png"),
    ]


@pytest.mark.usefixtures("alone")
def test_a_table_keeps_the_order_of_columns_and_leaves_nan_empty(tmp_path):
    run = open_tracker(tmp_path).run("a", "first")
    run.table([{"picture": "p", "f1@0.50": math.nan}, {"picture": "q", "nuclei": 3}], "images")
    (path,) = (tmp_path / "tracking" / "tables").rglob("images.json")
    assert json.loads(path.read_text()) == {
        "columns": ["picture", "f1@0·50", "nuclei"],
        "data": [["p", None, None], ["q", None, 3]],
    }


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_an_error_that_says_so(tmp_path):
    journal = Journal(tmp_path / "tracking")
    os.close(journal._handle)
    journal._handle = os.open("/dev/full", os.O_RDWR | os.O_APPEND)
    with pytest.raises(WriteFailed, match=r"No space left on device\.\nFree some space"):
        journal.append({"do": "tags", "run": "a"})
    journal.close()
