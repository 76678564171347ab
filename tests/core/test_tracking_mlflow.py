"""The journal as MLflow shows it: everything once, whatever happens in between."""

import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stainbridge.tracking import mirror, open_tracker, store

mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("default")]

CORE = Path(__file__).resolve().parents[2] / "core"


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """An SQLite store with its tables, to be copied; making them takes two seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path, empty_store):
    """A folder of results whose store is ready."""
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    return tmp_path


def client_of(folder):
    return mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")


def runs_in(client, experiment="stainbridge"):
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


def log_some(tracking, key="a", values=25):
    run = tracking.run(key, f"run {key}", tags={"role": "method"})
    run.params({"segmenter": {"name": "baseline"}, "seed": 1})
    for step in range(values):
        run.metrics({"matching/f1@0.50": 0.5 + step / 100, "loss": 1.0}, step=step)
    run.finish()
    return run


def history(client, run, name):
    return [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]


def python(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(CORE), **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_run_is_in_mlflow_with_everything(folder):
    with open_tracker(folder) as tracking:
        suite = tracking.run("suite", "the suite")
        run = tracking.run("a", "identity + baseline", parent=suite, tags={"role": "control"})
        run.params({"translator": {"name": "identity"}, "long": "x" * 7000})
        run.metrics({"matching/f1@0.50": 0.25, "nothing": math.nan, "endless": math.inf}, time_ms=7)
        run.finish("FAILED")
        assert tracking.flush() == mirror.Flushed(sent=5)
    by_name = {one.info.run_name: one for one in runs_in(client_of(folder))}
    child = by_name["identity + baseline"]
    assert child.info.status == "FAILED"
    assert by_name["the suite"].info.status == "RUNNING"
    assert child.data.tags["mlflow.parentRunId"] == by_name["the suite"].info.run_id
    assert child.data.tags["role"] == "control"
    assert child.data.params["translator.name"] == "identity"
    assert len(child.data.params["long"]) == 6000
    assert child.data.metrics["matching/f1 at 0.50"] == 0.25
    assert math.isnan(child.data.metrics["nothing"])
    assert child.data.metrics["endless"] == sys.float_info.max


def test_files_pictures_tables_and_models_are_in_mlflow(folder):
    picture = folder / "grid.png"
    Image.fromarray(np.zeros((300, 500, 3), np.uint8)).save(picture)
    (folder / "net").mkdir()
    (folder / "net" / "weights.safetensors").write_bytes(b"abc")
    with open_tracker(folder) as tracking:
        run = tracking.run("a", "training")
        run.artifact(picture, "some/where")
        run.figure(picture)
        run.figure(picture, name="grid/ihc", step=4)
        run.table([{"picture": "p", "f1@0.50": 0.5}], "images")
        for _ in range(2):
            run.model(folder / "net", "cyclegan/small", tags={"licence": "CC-BY-4.0"})
        assert tracking.flush() == mirror.Flushed(sent=7)
    client = client_of(folder)
    (found,) = runs_in(client)
    names = {
        one.path
        for top in ("some/where", "figures", "tables", "model")
        for one in client.list_artifacts(found.info.run_id, top)
    }
    assert names == {"some/where/grid.png", "figures/grid.png", "tables/images.json", "model/weights.safetensors"}
    series = sorted(Path(one.path).name for one in client.list_artifacts(found.info.run_id, "images"))
    assert [name.startswith("grid~ihc+step+4+timestamp+") for name in series] == [True, True]
    assert [Path(name).suffix for name in series] == [".webp", ".png"]
    assert json.loads(found.data.tags["mlflow.loggedArtifacts"]) == [{"path": "tables/images.json", "type": "table"}]
    assert client.get_run(found.info.run_id).data.tags["mlflow.loggedImages"] == "True"
    (version,) = client.search_model_versions("name = 'cyclegan-small'")
    assert version.tags["licence"] == "CC-BY-4.0"
    assert version.run_id == found.info.run_id


def test_the_same_key_carries_on_with_the_same_run(folder):
    for status in ("KILLED", "FINISHED"):
        with open_tracker(folder) as tracking:
            run = tracking.run("a", "one run")
            run.metrics({"loss": 1.0}, step=1)
            run.finish(status)
    (found,) = runs_in(client_of(folder))
    assert found.info.status == "FINISHED"
    assert history(client_of(folder), found, "loss") == [(1, 1.0)]


def test_another_folder_with_the_same_keys_has_runs_of_its_own(folder):
    for name in ("first", "second"):
        with open_tracker(folder / name, uri=f"sqlite:///{folder}/mlflow.db") as tracking:
            log_some(tracking, values=1)
    assert len(runs_in(client_of(folder))) == 2


def test_everything_sent_twice_is_there_once(folder):
    with open_tracker(folder) as tracking:
        log_some(tracking)
        tracking.flush()
        tracking.mirror.note.unlink()  # as if it had been killed between the sending and the noting
        assert tracking.flush(now=True).problem == ""
    client = client_of(folder)
    (found,) = runs_in(client)
    assert len(history(client, found, "loss")) == 25
    assert history(client, found, "matching/f1 at 0.50")[:2] == [(0, 0.5), (1, 0.51)]


KILLED = """
import os, signal, sys
from pathlib import Path
from stainbridge.tracking import open_tracker, store
calls = 0
def deadly(method):
    def call(self, *args, **kwargs):
        global calls
        before = calls == int(sys.argv[2])
        calls += 1
        if before and sys.argv[3] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = method(self, *args, **kwargs)
        if before:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
for name in ("create", "log", "finish", "upload", "carry_on"):
    setattr(store.Store, name, deadly(getattr(store.Store, name)))
tracking = open_tracker(Path(sys.argv[1]))
for key in "ab":
    run = tracking.run(key, key)
    run.params({"seed": 1})
    for step in range(20):
        run.metrics({"loss": step / 7}, step=step)
    run.table([{"picture": key}], "images")
    run.finish()
flushed = tracking.flush()
print(flushed.problem or "whole")
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_call_and_started_again_everything_is_there_once(folder, when):
    ends = []
    for call in (0, 1, 2, 3, 5, 99):
        process = python(KILLED, folder, call, when)
        ends.append((process.communicate(timeout=60)[0], process.returncode))
    assert [code for _, code in ends[:3]] == [-signal.SIGKILL] * 3
    assert ends[-1] == ("whole\n", 0)
    client = client_of(folder)
    found = runs_in(client)
    assert sorted((one.info.run_name, one.info.status) for one in found) == [("a", "FINISHED"), ("b", "FINISHED")]
    for one in found:
        assert history(client, one, "loss") == [(step, step / 7) for step in range(20)]
        assert len(json.loads(one.data.tags["mlflow.loggedArtifacts"])) == 1


def test_a_locked_store_stops_nobody_and_gets_everything_later(folder, monkeypatch):
    monkeypatch.setattr(store, "_ANSWER_S", 0.2)
    with (
        closing(sqlite3.connect(folder / "mlflow.db", isolation_level=None)) as other,
        open_tracker(folder) as tracking,
    ):
        other.execute("BEGIN EXCLUSIVE")
        log_some(tracking)
        since = time.monotonic()
        flushed = tracking.flush()
        assert (flushed.sent, flushed.waiting) == (0, 28)
        assert "database is locked" in flushed.problem
        assert tracking.flush() == flushed  # left alone for a while
        assert time.monotonic() - since < 10
        other.execute("ROLLBACK")
        assert tracking.flush(now=True) == mirror.Flushed(sent=28)
        tracking.run("b", "second")
        assert tracking.flush() == mirror.Flushed(sent=1)
    client = client_of(folder)
    (found,) = (one for one in runs_in(client) if one.info.run_name == "run a")
    assert len(history(client, found, "loss")) == 25


def test_a_store_that_was_removed_gets_everything_again(folder, empty_store):
    with open_tracker(folder) as tracking:
        log_some(tracking)
    (folder / "mlflow.db").unlink()
    code = "import sys; from stainbridge.tracking import open_tracker; print(open_tracker(sys.argv[1]).flush())"
    out, _ = python(code, folder).communicate(timeout=60)
    assert "sent=28, waiting=0" in out
    code = "import sys, mlflow; print(len(mlflow.MlflowClient(sys.argv[1]).search_runs(['1'])))"
    assert python(code, f"sqlite:///{folder}/mlflow.db").communicate(timeout=60)[0] == "1\n"


def test_what_the_store_refuses_is_named_and_holds_nothing_up(folder):
    with open_tracker(folder) as tracking:
        run = tracking.run("a", "first")
        run.params({"seed": 1})
        tracking.flush()
        run.params({"seed": 2})
        run.metrics({"loss": 1.0, "x" * 300: 2.0})
        run.artifact(folder / "gone.png")
        run.finish()
        flushed = tracking.flush()
    assert (flushed.waiting, flushed.problem) == (0, "")
    missing, length, changed = sorted(flushed.refused, key=lambda one: ("gone" not in one, "length" not in one))
    assert "gone.png' is no longer there" in missing
    assert "exceeds the maximum length of 250" in length
    assert "Changing param values is not allowed" in changed
    (found,) = runs_in(client_of(folder))
    assert (found.info.status, found.data.metrics, found.data.params) == ("FINISHED", {"loss": 1.0}, {"seed": "1"})


def test_a_file_that_cannot_be_sent_yet_holds_nothing_up_and_is_sent_later(folder, monkeypatch):
    (folder / "f.txt").write_text("x")
    with open_tracker(folder) as tracking:
        run = tracking.run("a", "first")
        run.artifact(folder / "f.txt")
        run.metrics({"loss": 1.0})
        run.finish()
        with monkeypatch.context() as broken:
            broken.setattr(store.Store, "upload", lambda *_: (_ for _ in ()).throw(OSError("bucket is full")))
            flushed = tracking.flush()
        assert (flushed.sent, flushed.waiting) == (3, 1)
        assert flushed.problem == "f.txt: OSError: bucket is full"
        assert runs_in(client_of(folder))[0].info.status == "FINISHED"
        assert tracking.flush(now=True) == mirror.Flushed(sent=1)
    client = client_of(folder)
    assert [one.path for one in client.list_artifacts(runs_in(client)[0].info.run_id)] == ["f.txt"]


def test_a_run_of_the_user_and_the_settings_of_mlflow_stay_as_they_were(folder, monkeypatch):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    own = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(own)
    try:
        with mlflow.start_run() as theirs:
            with open_tracker(folder / "results") as tracking:
                log_some(tracking)
                assert tracking.flush().problem == ""
            assert mlflow.active_run().info.run_id == theirs.info.run_id
            assert mlflow.get_tracking_uri() == own
        assert mlflow.get_run(theirs.info.run_id).data.metrics == {}
    finally:
        mlflow.set_tracking_uri(None)
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


FOUR = """
import sys
from stainbridge.tracking import open_tracker
with open_tracker(sys.argv[1], uri=sys.argv[2]) as tracking:
    for number in range(10):
        run = tracking.run(f"{sys.argv[3]}/{number}", f"{sys.argv[3]}/{number}")
        for step in range(20):
            run.metrics({"loss": step / 7}, step=step)
        run.finish()
        tracking.flush()
    print(tracking.flush(now=True))
"""


@pytest.mark.parametrize("together", [True, False])
def test_four_processes_fill_one_new_store_without_loss(tmp_path, together):
    uri = f"sqlite:///{tmp_path}/all.db"
    folders = [tmp_path / ("one" if together else str(number)) for number in range(4)]
    processes = [python(FOUR, folder, uri, number) for number, folder in enumerate(folders)]
    for process in processes:
        process.communicate(timeout=200)
    for folder in set(folders):  # what was waiting when its process ended
        with open_tracker(folder, uri=uri) as tracking:
            assert tracking.flush(now=True).problem == ""
    client = mlflow.MlflowClient(uri)
    found = runs_in(client)
    assert sorted(one.info.run_name for one in found) == [f"{a}/{b}" for a in range(4) for b in range(10)]
    assert {one.info.status for one in found} == {"FINISHED"}
    assert {tuple(history(client, one, "loss")) for one in found} == {tuple((step, step / 7) for step in range(20))}


def server(folder, port):
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    return subprocess.Popen(
        [*command, *stores],
        cwd=folder,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(port):
    until = time.monotonic() + 90
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail("the MLflow server did not come up")


def test_a_server_that_is_down_and_then_up_gets_everything_once(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open_tracker(folder / "results", uri=f"http://127.0.0.1:{port}") as tracking:
        run = log_some(tracking)
        run.metrics({"nothing": math.nan})
        run.table([{"picture": "p"}], "images")
        since = time.monotonic()
        flushed = tracking.flush()
        assert (flushed.sent, flushed.waiting) == (0, 30)
        assert f"port={port}" in flushed.problem
        assert time.monotonic() - since < 30
        process = server(folder, port)
        try:
            wait_for(port)
            assert tracking.flush(now=True) == mirror.Flushed(sent=30)
            tracking.mirror.note.unlink()
            assert tracking.flush(now=True) == mirror.Flushed(sent=30)
            run.params({"seed": 2})
            assert "Changing param values is not allowed" in tracking.flush(now=True).refused[0]
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
    client = client_of(folder)
    (found,) = runs_in(client)
    assert len(history(client, found, "loss")) == 25
    assert math.isnan(found.data.metrics["nothing"])
    assert list((folder / "files").rglob("images.json"))
