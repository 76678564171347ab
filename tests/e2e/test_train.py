"""`stainbridge train` as a person types it: a small CycleGAN and a small HoVer-Net learn, are killed, go on, and are used."""

import csv
import json
import math
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))
import training_fakes as fakes

from stainbridge import cli, discovery
from stainbridge.testing import synthetic_he
from stainbridge.training import group, launch

SMALL = ("learner.channels=8", "learner.blocks=2", "patch_px=64", "steps=4", "checkpoint_steps=2", "watch.size_px=128")


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for stain in ("ihc", "he"):
        fakes.write_pictures(folder / stain, stain, count=2, side=128)
    return folder


@pytest.fixture
def stain(monkeypatch, capsys):
    """Run the command line; return (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["stainbridge", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def tint():
    undo = discovery.register(fakes.TintPlugin())
    yield
    undo()


def command(plugin, pictures, out, *more, settings=()):
    chosen = [part for one in settings for part in ("--set", one)]
    return [
        "train",
        plugin,
        "--ihc",
        pictures / "ihc",
        "--he",
        pictures / "he",
        "-o",
        out,
        "--mpp",
        0.25,
        *chosen,
        *more,
    ]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("tint")
class TestTheCommand:
    QUICK = ("patch_px=32", "steps=2", "watch.every=0", "epochs=2")

    def test_it_says_how_to_use_what_was_trained(self, stain, pictures, tmp_path):
        out = tmp_path / "mine"
        code, stdout, stderr = stain(*command("tint", pictures, out, "--no-mlflow", settings=self.QUICK))
        assert code == 0
        lines = stdout.splitlines()
        assert lines[0] == "Trained tint/mine; the best of 2 epochs is 2."
        assert lines[1].endswith(f"--translator {out}")
        assert lines[2].endswith(f"--translator tint/mine --registry {out / 'model' / 'registry.toml'}")
        assert stdout.endswith((out / "model" / "registry.toml").read_text())
        assert "ihc: 2 pictures" in stderr
        assert "epoch 2 of 2: loss/colour" in stderr

    def test_what_it_prints_can_be_typed_with_blanks_in_names_too(self, stain, pictures, tmp_path):
        out = tmp_path / "my run's"
        code, stdout, _ = stain(*command("tint", pictures, out, "--no-mlflow", settings=self.QUICK))
        assert code == 0
        use, by_name = (shlex.split(line.partition(":")[2]) for line in stdout.splitlines()[1:3])
        assert use[-2:] == ["--translator", str(out)]
        assert by_name[-3:] == ["tint/my-run-s", "--registry", str(out / "model" / "registry.toml")]

    def test_a_step_that_does_not_fit_is_one_message(self, stain, pictures, tmp_path, monkeypatch):
        def step(self, batch):
            raise MemoryError("Unable to allocate 2.00 GiB")

        with monkeypatch.context() as patch:
            patch.setattr(fakes.TintLearner, "step", step)
            typed = command("tint", pictures, tmp_path / "run", "--no-mlflow", settings=self.QUICK)
            code, _, stderr = stain(*typed, "--set", "batch_size=2")
        assert code == 2
        assert "OutOfMemory: Step 1 of epoch 1 on 'cpu' does not fit into memory: Unable to allocate 2.00 GiB" in stderr
        assert "Traceback" not in stderr
        assert stain(*typed, "--set", "batch_size=1")[0] == 0

    def test_options_and_set_go_over_a_file_and_a_preset(self, stain, pictures, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text('preset = "slow"\nsteps = 3\n[watch]\nevery = 0\n')
        out = tmp_path / "run"
        more = ("--config", file, "--epochs", 1, "--no-mlflow", "--set", "learner.noise=0")
        assert stain(*command("tint", pictures, out, *more))[0] == 0
        config = json.loads((out / "training.json").read_text())["config"]
        found = {key: config[key] for key in ("epochs", "batch_size", "patch_px", "steps", "tracking")}
        assert found == {"epochs": 1, "batch_size": 2, "patch_px": 32, "steps": 3, "tracking": False}
        assert (config["learner"]["lr"], config["learner"]["noise"]) == (0.01, 0.0)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--set", "batch_sise=2"), "ConfigError: unknown key 'batch_sise'. Did you mean 'batch_size'?"),
            (("--set", "learner.nois=2"), "ConfigError: learner of 'tint': unknown key 'nois'. Did you mean 'noise'?"),
            (("--set", "patch_px=400"), "NoPictures: The ihc side is empty: none of its 2 pictures can be used."),
            (("--preset", "paper"), "ConfigError: 'tint' has no preset 'paper'."),
        ],
    )
    def test_a_mistake_is_one_message_and_exit_code_2(self, stain, pictures, tmp_path, arguments, message):
        code, stdout, stderr = stain(*command("tint", pictures, tmp_path / "run", *arguments))
        assert (code, stdout) == (2, "")
        assert message in stderr
        assert "Traceback" not in stderr

    def test_an_empty_side_and_a_missing_scale_are_named(self, stain, pictures, tmp_path):
        (tmp_path / "nothing").mkdir()
        _, _, stderr = stain(
            "train", "tint", "--ihc", tmp_path / "nothing", "--he", pictures / "he", "-o", tmp_path / "run"
        )
        assert "NoPictures: The ihc side is empty" in stderr
        _, _, stderr = stain(
            "train", "tint", "--ihc", pictures / "ihc", "--he", pictures / "he", "-o", tmp_path / "run"
        )
        assert "ScaleUnknown: 'ihc/ihc0.png' of the ihc side has no pixel size." in stderr

    def test_an_interrupted_training_says_how_to_go_on(self, stain, pictures, tmp_path, monkeypatch):
        def interrupted(self, batch):
            raise KeyboardInterrupt

        monkeypatch.setattr(fakes.TintLearner, "step", interrupted)
        code, _, stderr = stain(*command("tint", pictures, tmp_path / "run", "--no-mlflow", settings=self.QUICK))
        assert code == 130
        assert "The same command with --resume goes on" in stderr

    def test_several_processes_are_started_by_the_supervisor_and_not_by_its_ranks(
        self, stain, pictures, tmp_path, monkeypatch
    ):
        started = []

        def supervise(arguments, folder, *, processes):
            started.append((arguments, folder, processes))
            return 3

        monkeypatch.setattr(launch, "supervise", supervise)
        typed = command("tint", pictures, tmp_path / "run", "--processes", 2, "--no-mlflow", settings=self.QUICK)
        assert stain(*typed)[0] == 3
        assert started == [([str(one) for one in typed], tmp_path / "run", 2)]
        monkeypatch.setattr(group, "started_by_torchrun", lambda: True)
        monkeypatch.setattr("stainbridge.training.running.joined", lambda device: _alone())
        assert stain(*typed)[0] == 0
        assert len(started) == 1


def _alone():
    from contextlib import nullcontext

    return nullcontext(group.Membership(0, 1, "cpu"))


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    pytest.importorskip("torch")
    out = tmp_path_factory.mktemp("trained") / "run"
    arguments = command("cyclegan", pictures, out, "--epochs", 2, settings=SMALL)
    done = subprocess.run([sys.executable, "-m", "stainbridge", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.heavy
class TestCycleGAN:
    """A small one, on synthetic pictures."""

    def test_its_model_runs(self, stain, pictures, trained, tmp_path):
        ihc = pictures / "ihc" / "ihc0.png"
        code, _, stderr = stain(
            "run", ihc, "--mpp", 0.25, "-o", tmp_path / "out", "--translator", trained, "--segmenter", "baseline/he"
        )
        assert code == 0, stderr
        facts = json.loads((tmp_path / "out" / "ihc0" / "summary.json").read_text())["provenance"]["plugins"][
            "translator"
        ]
        assert facts["model"] == "cyclegan/run"
        assert facts["training"] == ["ihc", "he"]
        he = np.asarray(Pillow.open(tmp_path / "out" / "ihc0" / "virtual_he.png"))
        assert he.shape == (128, 128, 3)
        assert not np.array_equal(he, np.asarray(Pillow.open(ihc)))

    def test_epochs_are_written_down_and_shown(self, trained):
        table = rows(trained / "epochs.csv")
        assert [row["epoch"] for row in table] == ["1", "2"]
        assert all(
            math.isfinite(float(value)) for row in table for key, value in row.items() if key.startswith("loss/")
        )
        assert {"preservation", "kid", "centroid_recall", "brown_retention"} <= table[0].keys()
        assert sorted(path.name for path in (trained / "grids").iterdir()) == ["epoch_0001.png", "epoch_0002.png"]

    def test_mlflow_has_parameters_losses_and_the_model(self, trained):
        pytest.importorskip("mlflow")
        with closing(sqlite3.connect(trained / "mlflow.db")) as store:
            params = dict(store.execute("select key, value from params"))
            steps = dict(store.execute("select key, count(*) from metrics group by key"))
            models = store.execute("select name from model_versions").fetchall()
        assert (params["learner.channels"], params["steps_per_epoch"]) == ("8", "4")
        assert steps["loss/cycle_ihc"] == 8
        assert steps["epoch/preservation"] == 2
        assert models == [("cyclegan-run",)]

    def test_killed_it_goes_on_bit_for_bit(self, pictures, trained, tmp_path):
        out = tmp_path / "run"
        typed = command("cyclegan", pictures, out, "--epochs", 2, "--resume", "--no-mlflow", settings=SMALL)
        whole = [sys.executable, "-m", "stainbridge", *map(str, typed)]
        process = subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (out / "checkpoints" / "epoch_0001_step_000002").is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / "result.json").exists()
        subprocess.run(whole, check=True, capture_output=True)
        for file in ("checkpoints/epoch_0002/state.safetensors", "model/generator.safetensors", "epochs.csv"):
            assert (out / file).read_bytes() == (trained / file).read_bytes(), file


@pytest.mark.heavy
def test_a_small_hovernet_learns_from_labelled_pictures_and_runs(stain, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("cv2")
    folder = tmp_path / "labelled"
    folder.mkdir()
    for seed in range(3):
        sample = synthetic_he(shape=(256, 256), nuclei=25, seed=seed)
        Pillow.fromarray(sample.source.pixels).save(folder / f"p{seed}.png")
        Pillow.fromarray(sample.truth.array.astype(np.uint16)).save(folder / f"p{seed}_labels.png")
    out = tmp_path / "run"
    settings = ("learner.slimming=8", "steps=2", "watch.held_out=p2*", "watch.size_px=256")
    chosen = [part for one in settings for part in ("--set", one)]
    code, stdout, stderr = stain(
        "train", "hovernet", "--pictures", folder, "--mpp", 0.25, "-o", out, "--epochs", 1, "--no-mlflow", *chosen
    )
    assert code == 0, stderr
    assert f"--segmenter {out}" in stdout
    assert {"loss/loss", "f1", "dice"} <= rows(out / "epochs.csv")[0].keys()
    assert "pictures: 3 pictures" in stderr
    picture = folder / "p0.png"
    code, _, stderr = stain(
        "run", picture, "--mpp", 0.25, "-o", tmp_path / "out", "--segmenter", out, "--translator", "identity"
    )
    assert code == 0, stderr
    assert os.path.getsize(tmp_path / "out" / "p0" / "summary.json")
