"""A training goes on where it was, whatever happened; it stops where it must, and says why; its model runs."""

import csv
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import training_cases as cases
import training_fakes as fakes

import stainbridge
from stainbridge import TrainConfig, discovery
from stainbridge.errors import (
    ConfigError,
    DataCorrupt,
    DeviceUnavailable,
    OutputExists,
    TrainingDiverged,
    UnknownPlugin,
    WeightsCorrupt,
    WriteFailed,
)
from stainbridge.interfaces import Snapshot
from stainbridge.tracking import tracker
from stainbridge.training import checkpoints, loop, watching
from stainbridge.training.checkpoints import Checkpoints, Standing, sweep
from stainbridge.training.group import Membership
from stainbridge.training.heartbeat import last_beat
from stainbridge.training.tensors import read_tensors, write_tensors

STEPS, EPOCHS = 5, 3
HERE = Path(__file__).parent


tint, pictures = cases.tint, cases.pictures


@pytest.fixture
def settings(pictures):
    return {
        "ihc": pictures / "ihc",
        "he": pictures / "he",
        "mpp": 0.25,
        "patch_px": 32,
        "epochs": EPOCHS,
        "steps": STEPS,
        "checkpoint_steps": 2,
        "tracking": False,
        "watch": {"every": 0},
        "workers": 1,
    }


@pytest.fixture
def train(settings, tmp_path):
    """Train into a folder below tmp_path; see `train_into`."""

    def call(name="run", *, resume=False, stop_after=None, **changes):
        return cases.train_into(tmp_path / name, {**settings, **changes}, resume=resume, stop_after=stop_after)

    return call


def everything(folder):
    """Return what has to be the same of two trainings with the same settings, by file."""
    last = folder / "checkpoints" / f"epoch_{EPOCHS:04d}"
    state = json.loads((last / "state.json").read_text())["state"]
    paths = [last / "state.safetensors", folder / "epochs.csv", folder / "model" / fakes.FILE]
    state = {key: value for key, value in state.items() if key not in ("mark", "training")}
    return {path.name: path.read_bytes() for path in paths} | {"state": state}


def epochs_of(folder):
    with open(folder / "epochs.csv", newline="") as file:
        return list(csv.DictReader(file))


class TestATraining:
    def test_it_leaves_a_model_that_a_run_takes(self, train):
        folder, _ = train()
        gain = fakes.plain_tensors(folder / "model" / fakes.FILE)["gain"]
        assert not np.array_equal(gain, np.ones(3))
        ihc = np.full((1, 8, 8, 3), 100, np.uint8)
        by_name = discovery.build("translator", "tint/run", registries=[folder / "model" / "registry.toml"])
        by_folder = discovery.build("translator", str(folder))
        for built in (by_name, by_folder):
            assert np.array_equal(built.plugin.translate(ihc)[0, 0, 0], (100 * gain).astype(np.uint8))
        assert by_name.facts["training"] == ["ihc", "he"]
        assert (by_name.facts["licence"], by_name.facts["commercial"]) == (
            "unstated: as the training pictures allow",
            False,
        )

    def test_name_licence_and_data_sets_can_be_said(self, train):
        folder, _ = train("My Run 1", datasets=["mine"], licence="CC0-1.0", commercial=True)
        facts = discovery.build("translator", str(folder)).facts
        assert (facts["model"], facts["training"]) == ("tint/my-run-1", ["mine"])
        assert (facts["licence"], facts["commercial"]) == ("CC0-1.0", True)

    def test_the_losses_of_an_epoch_are_the_means_of_its_steps(self, train, monkeypatch):
        seen = []
        step = fakes.TintLearner.step
        monkeypatch.setattr(fakes.TintLearner, "step", lambda self, batch: seen.append(step(self, batch)) or seen[-1])
        folder, _ = train()
        for number, row in enumerate(epochs_of(folder)):
            own = seen[number * STEPS : (number + 1) * STEPS]
            assert int(row["epoch"]) == number + 1
            for name in ("colour", "gain"):
                assert float(row[f"loss/{name}"]) == pytest.approx(np.mean([one[name] for one in own]), rel=1e-12)

    def test_an_epoch_goes_once_through_the_larger_side(self, train, monkeypatch):
        begun = []
        monkeypatch.setattr(
            fakes.TintLearner, "begin", lambda self, epoch, epochs, steps: begun.append((epoch, epochs, steps))
        )
        train(steps=None, batch_size=4, ihc_patches=10, he_patches=3, checkpoint_steps=None)
        assert begun == [(epoch, EPOCHS, 3) for epoch in (1, 2, 3)]

    def test_the_seed_decides(self, train):
        assert everything(train("a")[0]) == everything(train("b", workers=3, memory_mb=0, keep_every=1)[0])
        assert everything(train("a2")[0])["state.safetensors"] != everything(train("c", seed=1)[0])["state.safetensors"]

    def test_what_it_was_made_from_is_written_down(self, train, pictures):
        folder, told = train()
        record = json.loads((folder / "training.json").read_text())
        assert record["config"]["learner"] == {
            "lr": 0.1,
            "noise": 0.01,
            "nan_at": None,
            "breaks_at": None,
            "pause_s": 0.0,
            "accumulate": 1,
        }
        assert record["software"]["libraries"]["numpy"] == np.__version__
        assert len((folder / "data.csv").read_text().splitlines()) == 1 + 6
        assert any("ihc: 3 pictures" in one and "he: 3 pictures" in one for one in told)

    def test_a_training_as_a_value_or_a_file_is_the_same(self, train, settings, tmp_path):
        expected = everything(train("a")[0])
        stainbridge.train(TrainConfig(plugin="tint", ihc_mpp=0.25, he_mpp=0.25, **settings), tmp_path / "b")
        lines = [f"{key} = {json.dumps(value, default=str)}" for key, value in settings.items() if key != "watch"]
        file = tmp_path / "c.toml"
        file.write_text(
            "\n".join(['plugin = "tint"', "ihc_mpp = 0.25", "he_mpp = 0.25", "watch.every = 0", *lines]).replace(
                "null", '""'
            )
        )
        stainbridge.train(file, tmp_path / "c")
        for name in ("b", "c"):
            assert everything(tmp_path / name)["state.safetensors"] == expected["state.safetensors"]

    def test_checkpoints_are_kept_by_the_rule(self, train):
        folder, _ = train(epochs=7, keep_every=3, checkpoint_steps=2)
        names = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert names == ["epoch_0003", "epoch_0006", "epoch_0007", "epoch_0007_step_000004"]


class Judge:
    """Stands for the watcher: scores are given."""

    remarks = ("a remark",)

    def __init__(self, folder, scores):
        self.folder, self.scores, self.seen = folder, scores, {}

    def watch(self, plugin, learner, epoch):
        self.seen[epoch] = (plugin, learner)
        assert np.array_equal(plugin.gain, learner.gain)
        return {"score": self.scores[epoch - 1]}

    def is_better(self, values, best):
        return best is None or values["score"] > best["score"]

    def grid(self, epoch):
        return self.folder / "grids" / f"epoch_{epoch:04d}.png"


@pytest.fixture
def judged(train, monkeypatch):
    def call(scores, **options):
        judges = []

        def open_watcher(config, ihc, he, folder, *, labelled=(), held_out=None):
            assert [len(ihc), len(he), len(labelled)] == [3, 3, 0]
            judges.append(Judge(folder, scores))
            return judges[-1]

        monkeypatch.setattr(watching.Watcher, "open", staticmethod(open_watcher))
        folder, told = train(epochs=len(scores), **options)
        return folder, told, judges[-1]

    return call


class TestTheBestEpoch:
    def test_it_is_the_one_that_the_watcher_prefers(self, judged):
        folder, told, judge = judged([0.2, 0.9, 0.5, 0.9], watch={"every": 1})
        (plugin, _) = judge.seen[2]
        assert isinstance(plugin, fakes.Tint)
        assert plugin.weights[fakes.FILE].parent == folder / "latest"
        assert json.loads((folder / "result.json").read_text())["best"] == {"epoch": 2.0, "score": 0.9}
        best = checkpoints.Checkpoints(folder, _mark(folder), Membership(0, 1, "cpu"))._read("epoch_0002")
        assert np.array_equal(fakes.plain_tensors(folder / "model" / fakes.FILE)["gain"], best.snapshot.tensors["gain"])
        assert 'epoch 2 of 4"' in (folder / "model" / "registry.toml").read_text()
        assert "a remark" in told

    def test_the_last_epoch_is_always_looked_at(self, judged):
        folder, _, judge = judged([0.1, 0.2, 0.3, 0.4, 0.0], watch={"every": 2})
        assert list(judge.seen) == [2, 4, 5]
        assert [row["score"] for row in epochs_of(folder)] == ["", "0.2", "", "0.4", "0.0"]
        assert (folder / "checkpoints" / "epoch_0004").is_dir()

    def test_there_is_a_model_before_the_first_look(self, judged, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            judged([0.1, 0.2, 0.3], watch={"every": 3}, stop_after=STEPS + 1)
        assert (tmp_path / "run" / "model" / "registry.toml").is_file()

    def test_the_last_one_is_taken_where_nobody_looks(self, train):
        folder, _ = train()
        assert json.loads((folder / "result.json").read_text())["best"] == {"epoch": 3.0}

    def test_a_nan_among_the_values_survives_a_restart(self, judged, tmp_path):
        scores = [float("nan"), 0.5, 0.4]
        with pytest.raises(KeyboardInterrupt):
            judged(scores, watch={"every": 1}, stop_after=2 * STEPS + 2)
        folder, _, _ = judged(scores, watch={"every": 1}, resume=True)
        assert [row["score"] for row in epochs_of(folder)] == ["nan", "0.5", "0.4"]


def _mark(folder):
    state = json.loads(next((folder / "checkpoints").glob("*/state.json")).read_text())
    return state["state"]["mark"]


class TestGoingOn:
    @pytest.mark.parametrize("stop_after", [1, 2, 4, 5, 7, 10, 14])
    def test_it_ends_as_if_it_had_never_stopped(self, train, stop_after):
        with pytest.raises(KeyboardInterrupt):
            train("stopped", stop_after=stop_after)
        folder, _ = train("stopped", resume=True)
        assert everything(folder) == everything(train("whole")[0])

    def test_there_may_be_nothing_to_go_on_from(self, train):
        folder, _ = train("new", resume=True)
        assert everything(folder) == everything(train("whole")[0])

    def test_a_finished_training_is_left_as_it_is(self, train):
        folder, _ = train()
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        _, told = train(resume=True)
        assert any("nothing is left to do" in one for one in told)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before

    def test_other_settings_are_refused_with_every_difference(self, train):
        with pytest.raises(KeyboardInterrupt):
            train(stop_after=4)
        with pytest.raises(ConfigError) as caught:
            train(resume=True, epochs=9, learner={"lr": 0.2})
        assert str(caught.value).splitlines()[1:3] == ["  learner.lr: 0.1 before, 0.2 now", "  epochs: 3 before, 9 now"]
        assert "cannot go on with other settings" in str(caught.value)

    def test_another_number_of_processes_is_refused(self, train, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            train(stop_after=4)
        path = tmp_path / "run" / "training.json"
        path.write_text(path.read_text().replace('"world": 1', '"world": 2'))
        with pytest.raises(ConfigError, match=r"  processes: 2 before, 1 now"):
            train(resume=True)

    def test_what_decides_nothing_may_differ(self, train):
        with pytest.raises(KeyboardInterrupt):
            train("a", stop_after=7)
        folder, _ = train("a", resume=True, workers=3, memory_mb=1, keep_every=2, checkpoint_steps=None)
        assert everything(folder) == everything(train("b")[0])

    def test_other_pictures_are_refused(self, train, pictures, tmp_path):
        other = fakes.write_pictures(tmp_path / "ihc", "ihc", count=4)
        with pytest.raises(KeyboardInterrupt):
            train(stop_after=4)
        with pytest.raises(DataCorrupt, match=r"'ihc/ihc3\.png' of 'ihc' is new"):
            train(resume=True, ihc=other)

    def test_other_software_is_told_of(self, train, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            train(stop_after=4)
        path = tmp_path / "run" / "training.json"
        path.write_text(path.read_text().replace(f'"numpy": "{np.__version__}"', '"numpy": "1.0"'))
        _, told = train(resume=True)
        assert any(f"libraries.numpy: 1.0 before, {np.__version__} now" in one for one in told)

    def test_a_folder_with_a_training_is_not_taken_again(self, train, tmp_path):
        train()
        with pytest.raises(OutputExists, match=r"holds a training\.\nPass --resume"):
            train()

    def test_a_folder_with_something_else_is_not_taken(self, train, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.tex").write_text("years")
        for resume in (False, True):
            with pytest.raises(OutputExists, match=r"is no training \(it holds 'thesis\.tex'\)"):
                train(resume=resume)
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputExists, match="is not a folder"):
            train("file")

    def test_leftovers_of_a_killed_process_are_swept_away(self, train, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            train(stop_after=7)
        folder = tmp_path / "run"
        (folder / "checkpoints" / ".epoch_0002.partial-0a1b2c3d").mkdir()
        (folder / ".model.old-0a1b2c3d").mkdir()
        (folder / ".partial-0a1b2c3d.epochs.csv").write_text("half")
        train(resume=True)
        assert not [path for path in folder.rglob(".*") if "partial" in path.name or "old" in path.name]

    def test_a_checkpoint_that_was_being_replaced_comes_back(self, train, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            train(stop_after=7)
        folder = tmp_path / "run" / "checkpoints"
        before = sorted(path.name for path in folder.iterdir())
        (folder / before[-1]).rename(folder / f".{before[-1]}.old-0a1b2c3d")
        sweep(tmp_path / "run")
        assert sorted(path.name for path in folder.iterdir()) == before


class TestWhatGoesWrong:
    @pytest.mark.parametrize("at", [1, 8, 15])
    def test_a_loss_that_is_no_number_stops_it_and_names_the_step(self, train, tmp_path, at):
        epoch, step = (at - 1) // STEPS + 1, (at - 1) % STEPS + 1
        with pytest.raises(TrainingDiverged) as caught:
            train(learner={"nan_at": at}, checkpoint_steps=None)
        message = str(caught.value)
        assert f"The loss 'colour' became nan in epoch {epoch}, step {step} of 5 (step {at} of the training)" in message
        names = sorted(path.name for path in (tmp_path / "run").glob("checkpoints/*"))
        assert names == [f"epoch_{number:04d}" for number in range(1, epoch)]
        assert (f"epoch_{epoch - 1:04d}'" in message) == (epoch > 1)
        assert ("There is no checkpoint yet" in message) == (epoch == 1)

    def test_no_checkpoint_is_written_behind_a_loss_that_is_no_number(self, train, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "CHUNK", 1000)
        with pytest.raises(TrainingDiverged, match="epoch 1, step 3 of 5"):
            train(learner={"nan_at": 3}, checkpoint_steps=4)
        assert not list((tmp_path / "run").glob("checkpoints/epoch*"))

    def test_weights_that_the_last_step_of_an_epoch_broke_are_not_kept(self, train, tmp_path):
        with pytest.raises(TrainingDiverged, match=r"'gain' holds NaN or infinity after epoch 2, step 5 of 5"):
            train(learner={"breaks_at": 10}, checkpoint_steps=None)
        names = [path.name for path in (tmp_path / "run").glob("checkpoints/*")]
        assert names == ["epoch_0001"]

    @pytest.mark.parametrize("nth", [1, 3, 5])
    def test_a_full_disk_at_a_checkpoint_leaves_the_one_before_whole(self, train, tmp_path, monkeypatch, nth):
        calls = []

        def full(path, tensors):
            calls.append(path)
            if len(calls) == nth:
                path.write_bytes(b"a part of it")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write_tensors(path, tensors)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "write_tensors", full)
            with pytest.raises(WriteFailed, match=r"checkpoints/epoch_.*No space left on device(.|\n)*Free some space"):
                train()
        kept = list((tmp_path / "run" / "checkpoints").iterdir())
        assert len(kept) == min(nth - 1, 2)
        folder, told = train(resume=True)
        assert not any("refused" in one for one in told)
        assert everything(folder) == everything(train("whole")[0])

    def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken(self, train, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            train(stop_after=2 * STEPS + 3)
        newest = tmp_path / "run" / "checkpoints" / "epoch_0003_step_000002"
        data = bytearray((newest / "state.safetensors").read_bytes())
        data[-1] ^= 1
        (newest / "state.safetensors").write_bytes(data)
        folder, told = train(resume=True)
        assert any(
            "'epoch_0003_step_000002' is refused, and the one before it is taken" in one and "sha256" in one
            for one in told
        )
        assert (folder / "checkpoints" / "refused_epoch_0003_step_000002").is_dir()
        assert everything(folder) == everything(train("whole")[0])

    def test_nothing_whole_is_an_error(self, train, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            train(stop_after=STEPS + 1)
        for path in (tmp_path / "run").glob("checkpoints/*/state.json"):
            path.write_text(path.read_text()[:-20])
        with pytest.raises(WeightsCorrupt, match=r"None of the 2 checkpoints in .* is whole"):
            train(resume=True)

    @pytest.mark.parametrize(
        ("name", "changes", "error", "message"),
        [
            ("tnit", {}, UnknownPlugin, r"No plugin is named 'tnit'\. Did you mean 'tint'\?\nCan be trained: .*tint"),
            ("baseline", {}, UnknownPlugin, r"'baseline' has nothing to train\.\nCan be trained: .*tint"),
            ("tint", {"he": []}, ConfigError, r"unpaired: --he is missing\.\nPass --ihc FOLDER and --he FOLDER"),
            ("tint", {"pictures": ["x"]}, ConfigError, r"--pictures is not for it"),
            (
                "tint",
                {"learner": {"lrr": 1}},
                ConfigError,
                r"learner of 'tint': unknown key 'lrr'\. Did you mean 'lr'\?",
            ),
            ("tint", {"epoch": 1}, ConfigError, r"unknown key 'epoch'\. Did you mean 'epochs'\?"),
            ("tint", {"preset": "fast"}, ConfigError, r"no preset 'fast'.*Presets: slow"),
        ],
    )
    def test_a_mistake_is_said_before_anything_is_written(self, settings, tmp_path, name, changes, error, message):
        with pytest.raises(error, match=message):
            stainbridge.train(name, tmp_path / "run", **{**settings, **changes})
        assert not (tmp_path / "run").exists()

    def test_without_mlflow_it_trains_and_says_so(self, train, monkeypatch):
        monkeypatch.setattr(tracker, "installed", lambda: False)
        folder, told = train(tracking=True)
        assert any("MLflow is not installed" in one for one in told)
        assert everything(folder) == everything(train("silent")[0])

    @pytest.mark.heavy
    def test_with_an_mlflow_that_does_not_answer_it_trains_and_says_so(self, train, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        folder, told = train(tracking=True)
        assert any("The results are on the disk" in one for one in told)
        assert (folder / "result.json").is_file()

    @pytest.mark.heavy
    def test_a_device_that_is_not_there_is_said_first(self, train, tmp_path):
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has CUDA")
        with pytest.raises(DeviceUnavailable, match="Device 'cuda' was asked for"):
            train(device="cuda")
        assert not (tmp_path / "run").exists()


class TestCheckpoints:
    ALONE = Membership(0, 1, "cpu")

    def kept(self, folder):
        at = Checkpoints(folder, "mark", self.ALONE)
        rng = np.random.default_rng(0)
        tensors = {
            "empty": np.zeros((0, 3), np.float32),
            "number": np.array(2.5),
            "turned": rng.normal(size=(3, 4)).T,
            "bits": np.array([True, False]),
            "half": np.arange(5, dtype=np.float16),
        }
        values = {"rng": rng.bit_generator.state, "nan": float("nan"), "text": "µm"}
        at.write(Standing(2, 3, 9, {"a": 0.1}, [{"epoch": 1.0, "kid": float("nan")}]), Snapshot(tensors, values))
        return at, tensors, values

    def test_what_is_read_is_what_was_written(self, tmp_path):
        at, tensors, values = self.kept(tmp_path)
        found = at.newest()
        assert found.snapshot.tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            again = found.snapshot.tensors[name]
            assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
            assert np.array_equal(again, tensor)
            assert again.flags.writeable
        assert json.dumps(found.snapshot.values) == json.dumps(values)
        assert (found.standing.epoch, found.standing.step, found.standing.sums) == (2, 3, {"a": 0.1})
        assert np.isnan(found.standing.history[0]["kid"])

    @pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
    def test_no_flipped_bit_and_no_cut_passes(self, tmp_path, file):
        at, _, _ = self.kept(tmp_path)
        path, rng = tmp_path / "checkpoints" / "epoch_0002_step_000003" / file, random.Random(0)
        whole = path.read_bytes()
        cuts = [whole[:size] for size in rng.sample(range(len(whole)), 20)]
        flips = []
        for _ in range(200):
            data = bytearray(whole)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            flips.append(bytes(data))
        for damaged in [*cuts, *flips, whole + b"\n"]:
            path.write_bytes(damaged)
            with pytest.raises(WeightsCorrupt):
                at._read(path.parent.name)
        path.write_bytes(whole)
        assert at.newest() is not None

    def test_a_damaged_file_of_another_rank_is_found_by_the_first(self, tmp_path):
        self.kept(tmp_path)
        folder = tmp_path / "checkpoints" / "epoch_0002_step_000003"
        state = json.loads((folder / "state.json").read_text())["state"]
        own = write_tensors(folder / "rank_1.safetensors", {"pool": np.arange(6.0)}).to_dict()
        state["ranks"].append({"tensors": own, "names": ["pool"], "values": {}})
        (folder / "state.json").write_text(checkpoints._sealed(state))
        two = Checkpoints(tmp_path, "mark", Membership(0, 2, "cpu"))
        assert two._read(folder.name).standing.epoch == 2
        data = bytearray((folder / "rank_1.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "rank_1.safetensors").write_bytes(data)
        with pytest.raises(WeightsCorrupt, match="rank_1"):
            two._read(folder.name)

    def test_one_of_another_training_is_refused(self, tmp_path):
        self.kept(tmp_path)
        with pytest.raises(WeightsCorrupt, match="None of the 1 checkpoints"):
            Checkpoints(tmp_path, "other", self.ALONE).newest()

    @pytest.mark.heavy
    def test_files_of_tensors_are_those_of_the_safetensors_library(self, tmp_path):
        torch = pytest.importorskip("torch")
        library = pytest.importorskip("safetensors.torch")
        tensors = {
            "weight": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "bf16": torch.randn(7).bfloat16(),
            "step": torch.tensor(3.0),
            "rng": torch.get_rng_state(),
            "counter": torch.arange(3),
        }
        written = write_tensors(tmp_path / "mine.safetensors", tensors)
        for found in (
            library.load_file(tmp_path / "mine.safetensors"),
            read_tensors(tmp_path / "mine.safetensors", written.to_dict()),
        ):
            assert found.keys() == tensors.keys()
            assert all(
                torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
                for name, tensor in tensors.items()
            )


@pytest.mark.heavy
class TestKilled:
    """By SIGKILL, from outside, at any moment."""

    STEPS = 60

    def command(self, pictures, folder, *, checkpoint_steps=5, pause_s=0.01):
        changes = {
            "ihc": str(pictures / "ihc"),
            "he": str(pictures / "he"),
            "mpp": 0.25,
            "patch_px": 32,
            "flips": "all",
            "epochs": EPOCHS,
            "steps": self.STEPS,
            "checkpoint_steps": checkpoint_steps,
            "tracking": False,
            "watch": {"every": 0},
            "learner": {"pause_s": pause_s},
        }
        return [str(HERE / "training_fakes.py"), str(folder), json.dumps(changes)]

    def test_it_ends_as_if_nothing_had_happened(self, pictures, tmp_path):
        subprocess.run([sys.executable, *self.command(pictures, tmp_path / "whole")], check=True)
        rng, reached = random.Random(0), set()
        for number in range(10):
            process = subprocess.Popen([sys.executable, *self.command(pictures, tmp_path / "killed")])
            self.wait_for_work(process, tmp_path / "killed", steps=0 if number < 3 else rng.randrange(1, 15))
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            reached |= {path.name for path in (tmp_path / "killed").glob("checkpoints/epoch*")}
        subprocess.run([sys.executable, *self.command(pictures, tmp_path / "killed")], check=True)
        assert len(reached) >= 5
        assert everything(tmp_path / "killed") == everything(tmp_path / "whole")

    def wait_for_work(self, process, folder, *, steps):
        """Wait until a process has done some steps of its own; for none, until it gives a sign of life."""
        heard, seen, deadline = last_beat(folder), set(), time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            beat = last_beat(folder)
            if beat != heard:
                seen |= {(beat["epoch"], beat["step"])} if beat["doing"] == "training" else set()
                if len(seen) >= steps:
                    return
            time.sleep(0.003)

    def test_so_do_two_processes_each_with_a_state_of_its_own(self, pictures, tmp_path):
        pytest.importorskip("torch")

        def run(folder, **environment):
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=0"]
            command = [sys.executable, *launch, *self.command(pictures, folder, pause_s=0)]
            alone = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, timeout=100, env={**os.environ, **alone, **environment})
            return done.returncode

        assert run(tmp_path / "whole") == 0
        assert run(tmp_path / "killed", TEST_RANK_1_DIES_AT="88") != 0
        assert len(list((tmp_path / "killed" / "checkpoints").glob("epoch*"))) >= 2
        assert not (tmp_path / "killed" / "result.json").exists()
        assert run(tmp_path / "killed") == 0
        assert everything(tmp_path / "killed") == everything(tmp_path / "whole")
        last = tmp_path / "whole" / "checkpoints" / f"epoch_{EPOCHS:04d}"
        own, other = (fakes.plain_tensors(last / name) for name in ("state.safetensors", "rank_1.safetensors"))
        assert own.keys() == {"gain", "past", "alike"}
        assert other.keys() == {"gain", "past"}
        assert not np.array_equal(own["past"], other["past"])
        killed = tmp_path / "killed" / "checkpoints" / last.name / "rank_1.safetensors"
        assert killed.read_bytes() == (last / "rank_1.safetensors").read_bytes()
