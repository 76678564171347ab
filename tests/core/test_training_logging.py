"""A training is on disk at once and in MLflow once, whether it is there, away, or comes later."""

import json
import math
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from stainbridge.tracking import tracker
from stainbridge.training.logging import MOST_STEPS, open_log
from stainbridge.training.settings import TrainConfig

PLAIN = TrainConfig(plugin="cyclegan")


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def alone(monkeypatch):
    """A world without MLflow."""
    monkeypatch.setattr(tracker, "installed", lambda: False)


def journal(folder, do):
    lines = (folder / "tracking" / "journal.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["do"] == do]


def grid(folder, epoch):
    path = folder / "grids" / f"epoch_{epoch:04d}.png"
    path.parent.mkdir(exist_ok=True)
    Pillow.fromarray(np.full((8, 8, 3), epoch, np.uint8)).save(path)
    return path


def train(folder, epochs, *, steps=5, bias=0.0, **options):
    """Log epochs as a loop does, and return what it is told at the end."""
    log = open_log(folder, PLAIN, **options)
    log.params({"config": {"plugin": "cyclegan", "learner": {"lambda_identity": 0.5}}, "seed": 0})
    for epoch in epochs:
        for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
            log.step({"G_A": 1 / step + bias, "D_A": 0.5}, step)
        log.epoch({"preservation": epoch / 10 + bias, "kid": math.nan}, epoch, grid(folder, epoch))
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "generator.safetensors").write_bytes(b"weights")
    tags = {"licence": "CC-BY-4.0", "data": "ours", "plugin": "cyclegan", "preservation": "0.9"}
    log.model(model, "cyclegan/ours", tags)
    return log.close()


@pytest.mark.usefixtures("alone")
class TestWithoutMlflow:
    def test_everything_is_on_disk_and_the_pip_line_is_said(self, tmp_path):
        told = train(tmp_path, [1, 2])
        assert (
            told
            == "MLflow is not installed, so the runs are kept on disk only.\nRun: pip install 'stainbridge[mlflow]'"
        )
        values = journal(tmp_path, "metrics")
        assert [event["step"] for event in values] == [1, 2, 3, 4, 5, 1, 6, 7, 8, 9, 10, 2]
        assert values[0]["values"] == {"loss/G_A": 1.0, "loss/D_A": 0.5}
        assert values[5]["values"]["epoch/preservation"] == 0.1
        assert journal(tmp_path, "params")[0]["values"]["config.learner.lambda_identity"] == "0.5"
        assert [(event["name"], event["step"], event["path"]) for event in journal(tmp_path, "picture")] == [
            ("grid", 1, "grids/epoch_0001.png"),
            ("grid", 2, "grids/epoch_0002.png"),
        ]
        assert journal(tmp_path, "finish")[0]["status"] == "FINISHED"

    def test_steps_that_are_repeated_are_logged_once_even_where_they_come_out_differently(self, tmp_path):
        train(tmp_path, [1, 2])
        train(tmp_path, [2, 3], bias=0.25)  # killed in epoch 3, gone on from the end of epoch 1
        steps = [(event["step"], name) for event in journal(tmp_path, "metrics") for name in event["values"]]
        assert len(steps) == len(set(steps))
        assert {step for step, name in steps if name == "loss/G_A"} == set(range(1, 16))
        assert {step for step, name in steps if name == "epoch/kid"} == {1, 2, 3}
        assert [event["step"] for event in journal(tmp_path, "picture")] == [1, 2, 3]

    def test_parameters_are_logged_once_and_what_changed_becomes_a_tag(self, tmp_path):
        for device in ("cpu", "cpu", "cuda"):
            log = open_log(tmp_path, PLAIN)
            log.params({"seed": 0, "device": device})
            log.close()
        assert [event["values"] for event in journal(tmp_path, "params")] == [{"seed": "0", "device": "cpu"}]
        assert [event["values"] for event in journal(tmp_path, "tags")] == [{"resumed.device": "cuda"}]

    def test_of_very_many_steps_every_so_many_is_logged_and_the_first(self, tmp_path):
        log = open_log(tmp_path, PLAIN, steps=3 * MOST_STEPS - 1)
        for step in range(1, 11):
            log.step({"G": 1.0}, step)
        assert [event["step"] for event in journal(tmp_path, "metrics")] == [1, 3, 6, 9]

    def test_the_run_says_what_was_trained_and_how_it_ended(self, tmp_path):
        (tmp_path / "mine").mkdir()
        open_log(tmp_path / "mine", PLAIN, tags={"commit": "abc"}).close("FAILED")
        (start,) = journal(tmp_path / "mine", "run")
        assert start["name"] == "cyclegan mine"
        assert start["tags"] == {"stainbridge.kind": "training", "plugin": "cyclegan", "commit": "abc"}
        assert journal(tmp_path / "mine", "finish")[0]["status"] == "FAILED"

    def test_switched_off_nothing_is_written_and_nothing_said(self, tmp_path):
        log = open_log(tmp_path, PLAIN.replace(tracking=False))
        log.params({"seed": 0})
        log.step({"G": 1.0}, 1)
        log.epoch({"kid": 1.0}, 1, grid(tmp_path, 1))
        assert log.close() is None
        assert [path.name for path in tmp_path.iterdir()] == ["grids"]


@pytest.mark.heavy
@pytest.mark.filterwarnings("default")
class TestInMlflow:
    @pytest.fixture(autouse=True)
    def mlflow(self):
        return pytest.importorskip("mlflow", reason="MLflow is not installed")

    def client(self, mlflow, uri):
        client = mlflow.MlflowClient(uri)
        (run,) = client.search_runs([client.get_experiment_by_name("stainbridge").experiment_id])
        return client, run

    def whole(self, mlflow, uri, epochs):
        """Check that a training of some epochs is there, each value once."""
        client, run = self.client(mlflow, uri)
        assert run.info.status == "FINISHED"
        losses = client.get_metric_history(run.info.run_id, "loss/G_A")
        assert [(one.step, one.value) for one in losses] == [(step, 1 / step) for step in range(1, 5 * epochs + 1)]
        scores = client.get_metric_history(run.info.run_id, "epoch/preservation")
        assert [(one.step, one.value) for one in scores] == [(epoch, epoch / 10) for epoch in range(1, epochs + 1)]
        names = [Path(one.path).name for one in client.list_artifacts(run.info.run_id, "images")]
        pictures = sorted(name.split("+")[2] for name in names if name.endswith(".png"))
        assert pictures == [str(epoch) for epoch in range(1, epochs + 1)]
        assert run.data.params["config.learner.lambda_identity"] == "0.5"
        (version,) = client.search_model_versions("name = 'cyclegan-ours'")
        assert version.run_id == run.info.run_id
        assert version.tags == {"licence": "CC-BY-4.0", "data": "ours", "plugin": "cyclegan", "preservation": "0.9"}
        files = [one.path for one in client.list_artifacts(run.info.run_id, "model")]
        assert files == ["model/generator.safetensors"]
        assert math.isnan(run.data.metrics["epoch/kid"])

    def test_a_training_that_was_broken_off_and_went_on_is_there_once(self, mlflow, tmp_path):
        log = open_log(tmp_path, PLAIN)  # killed in the middle of epoch 2: nothing is closed
        log.params({"config": {"plugin": "cyclegan", "learner": {"lambda_identity": 0.5}}, "seed": 0})
        for step in range(1, 8):
            log.step({"G_A": 1 / step, "D_A": 0.5}, step)
            if step == 5:
                log.epoch({"preservation": 0.1, "kid": math.nan}, 1, grid(tmp_path, 1))
        assert train(tmp_path, [2, 3]) is None
        assert train(tmp_path, [3]) is None
        self.whole(mlflow, f"sqlite:///{tmp_path}/mlflow.db", 3)

    def test_a_database_that_is_locked_costs_nothing_and_gets_all_of_it_later(self, mlflow, tmp_path, monkeypatch):
        from stainbridge.tracking import store

        monkeypatch.setattr(store, "_ANSWER_S", 0.1)
        mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()
        with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as link:
            link.execute("BEGIN EXCLUSIVE")
            told = train(tmp_path, [1, 2])
        assert told.endswith("The results are on the disk. The same command with --resume logs the rest.")
        assert "locked" in told
        assert train(tmp_path, []) is None
        self.whole(mlflow, f"sqlite:///{tmp_path}/mlflow.db", 2)

    def test_a_server_that_is_away_is_told_and_training_is_whole_on_disk(self, tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{free.getsockname()[1]}"
        told = train(tmp_path, [1], uri=address)
        assert told.endswith("The same command with --resume logs the rest.")
        assert len(journal(tmp_path, "metrics")) == 6

    def test_what_the_store_refuses_is_told_and_the_rest_arrives(self, mlflow, tmp_path):
        log = open_log(tmp_path, PLAIN)
        log.epoch({"kid": 1.0}, 1, tmp_path / "gone.png")
        told = log.close()
        assert "gone.png" in told
        assert "no longer there" in told
        _, run = self.client(mlflow, f"sqlite:///{tmp_path}/mlflow.db")
        assert run.data.metrics["epoch/kid"] == 1.0
