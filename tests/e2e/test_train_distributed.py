"""A small CycleGAN trained by two processes over gloo: same gradients as one process, and killed ranks cost time and nothing else."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch", reason="the torch extra is not installed")

from stainbridge.errors import ConfigError, DeviceUnavailable
from stainbridge.testing import synthetic_he
from stainbridge.training import launch
from stainbridge.training.group import joined

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from faults_training import Fault, command, family, pictures, ranks_of, runs, watched
from train_distributed_work import gradients_of_first_step

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent


def ranks_that(*arguments, processes, folder):
    """Run `train_distributed_work` with arguments in so many ranks, once."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = launch.torchrun(list(arguments), processes)
    command[command.index("stainbridge")] = "train_distributed_work"
    return launch.keep_going(command, command, folder, restarts=0, environment=environment)


def steps_of_ranks(folder, processes, device):
    """Return losses and gradients of each of several ranks that share a batch."""
    from safetensors.torch import load_file

    assert ranks_that("step", str(folder), device, processes=processes, folder=folder) == 0
    return [load_file(folder / f"rank_{rank}.safetensors") for rank in range(processes)]


@pytest.fixture(scope="module")
def shared_step(tmp_path_factory):
    """Losses and gradients of each of two ranks that share a batch."""
    return steps_of_ranks(tmp_path_factory.mktemp("gradients"), 2, "cpu")


def test_two_processes_have_the_gradients_of_one_with_the_doubled_batch(shared_step):
    _, gradients = gradients_of_first_step(0, 1)
    _, halves = gradients_of_first_step(0, 2)
    assert len(gradients) > 40
    for name, expected in gradients.items():
        # A bias before instance normalisation has no gradient, but for rounding.
        allowed = 2e-5 * expected.abs().max() + 1e-7
        for found in shared_step:
            assert (found[name] - expected).abs().max() <= allowed, name
        if expected.abs().max() > 1e-4:
            assert (halves[name] - expected).abs().max() > 100 * allowed, name


def test_both_processes_report_the_losses_of_the_doubled_batch(shared_step):
    losses, _ = gradients_of_first_step(0, 1)
    for found in shared_step:
        assert {name: found[f"loss/{name}"].item() for name in losses} == pytest.approx(losses, rel=1e-5)


@pytest.mark.gpu
def test_a_rank_on_a_gpu_joins_and_learns_what_it_learns_on_a_cpu(tmp_path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    losses, _ = gradients_of_first_step(0, 1)
    (found,) = steps_of_ranks(tmp_path, 1, "cuda")
    assert {name: found[f"loss/{name}"].item() for name in losses} == pytest.approx(losses, rel=5e-3)


def test_rank_0_is_waited_for_and_does_not_wait_for_ever(tmp_path):
    with pytest.raises(launch.TrainingLost, match="Rank 0 ended with exit code 1"):
        ranks_that("meet", str(tmp_path), processes=2, folder=tmp_path)
    waited = {path.name: float(path.read_text()) for path in tmp_path.glob("?_by_?")}
    assert waited["0_by_1"] > 5
    assert waited["1_by_0"] < 5


class TestDevices:
    @pytest.fixture(autouse=True)
    def one_of_four(self, monkeypatch):
        """Make this process look like one of four ranks of torchrun."""
        for name, value in {
            "TORCHELASTIC_RUN_ID": "x",
            "RANK": "1",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "4",
        }.items():
            monkeypatch.setenv(name, value)

    def test_one_gpu_is_not_shared_by_several_processes(self):
        with pytest.raises(ConfigError, match="4 processes cannot share 'cuda:1'"), joined("cuda:1"):
            pass

    def test_fewer_gpus_than_processes_are_told(self, monkeypatch):
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        with pytest.raises(DeviceUnavailable, match="4 processes need 4 GPUs; this machine has 2"), joined("cuda"):
            pass


SHORT = {"epochs": 2, "steps": 30, "checkpoint_steps": 3}
"""Some seconds of steps also on a quick machine, so that it is still under way when a fault is due."""


SHORT_OF_MEMORY = """
import os
if os.environ.get("RANK") == "1":
    import torch
    from stainbridge_plugins.cyclegan.learner import CycleGANLearner
    def step(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    CycleGANLearner.step = step
"""
"""Python runs it first."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Synthetic pictures of both stains."""
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="ranks are told apart by /proc")
class TestFaults:
    def test_two_killed_ranks_leave_no_trace_in_the_weights(self, data, tmp_path):
        peace = watched(command(data, tmp_path / "peace", **SHORT), tmp_path / "peace")
        killed = watched(
            command(data, tmp_path / "killed", **SHORT), tmp_path / "killed", [Fault(0.3, rank=1), Fault(0.3, rank=0)]
        )
        assert (peace.code, killed.code) == (0, 0), (tmp_path / "killed.log").read_text()
        assert len(killed.faults) == 2
        assert killed.weights() == peace.weights() != ""
        assert (peace.left(), killed.left()) == (0, 0)
        assert max(killed.recoveries_s()) < 120

    def test_a_rank_that_stands_still_is_silence_and_then_replaced(self, data, tmp_path):
        line = command(data, tmp_path / "run", **SHORT)
        call = f"supervise({line[3:]}, {str(tmp_path / 'run')!r}, processes=2, silence_s=20.0)"
        code = f"import sys; from stainbridge.training.launch import supervise; sys.exit({call})"
        seen = watched([sys.executable, "-c", code], tmp_path / "run", [Fault(0.5, rank=1, signal=signal.SIGSTOP)])
        assert seen.code == 0
        assert len(seen.faults) == 1
        assert "No sign of life for 20 s in epoch" in (tmp_path / "run.log").read_text()
        assert seen.left() == 0

    def test_a_signal_to_the_command_ends_every_process(self, data, tmp_path):
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(command(data, tmp_path / "run"), stdout=log, stderr=log)
            while len(ranks_of(process.pid)) < 2 and process.poll() is None:
                time.sleep(0.1)
            everyone = family(process.pid)
            process.terminate()
            assert process.wait(30) == 143
        assert len(everyone) >= 3
        assert not any(runs(pid) for pid in everyone)


class TestRefused:
    @pytest.fixture
    def told(self, data, tmp_path):
        """Return a function that trains with settings and returns the exit code and what was printed to stderr."""

        def run(**settings):
            found = subprocess.run(
                command(data, tmp_path / "run", **settings), capture_output=True, text=True, check=False
            )
            return found.returncode, found.stderr

        return run

    def test_settings_that_are_wrong_are_told_once_and_not_tried_again(self, told):
        code, text = told(patch_px=50, resize_px=60)
        assert code == 2
        assert text.count("ConfigError: CycleGAN learns from patches whose side is a multiple of") == 1
        assert "Starting again" not in text
        assert "Traceback" not in text

    def test_a_step_that_does_not_fit_is_told_once_and_not_tried_again(self, data, tmp_path):
        (tmp_path / "sitecustomize.py").write_text(SHORT_OF_MEMORY)
        paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
        found = subprocess.run(
            command(data, tmp_path / "run", batch_size=2),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **paths},
        )
        assert found.returncode == 2, found.stderr
        assert found.stderr.count("OutOfMemory: Step 1 of epoch 1 on 'cpu' does not fit into memory: CUDA out of") == 1
        assert "--set learner.accumulate=2" in found.stderr
        assert "Starting again" not in found.stderr
        assert not (tmp_path / "run" / ".lock").exists()


def train_hovernet(folder, *more):
    """Train on the tiles in a folder, by two processes, and return what was printed to stderr."""
    settings = ("learner.slimming=8", "epochs=2", "steps=1", "batch_size=1", "watch.every=0")
    chosen = [part for one in settings for part in ("--set", one)]
    line = [
        "train",
        "hovernet",
        "--pictures",
        str(folder / "tiles"),
        "--mpp",
        "0.25",
        "-o",
        str(folder / "run"),
        *chosen,
    ]
    command = [sys.executable, "-m", "stainbridge", *line, "--no-mlflow", "--processes", "2", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert found.returncode == 0, found.stderr
    assert "Starting again" not in found.stderr
    return found.stderr


@pytest.fixture(scope="module")
def hovernet(tmp_path_factory):
    """A folder with tiles and a training of them."""
    folder = tmp_path_factory.mktemp("hovernet")
    (folder / "tiles").mkdir()
    for seed in range(2):
        sample = synthetic_he(shape=(260, 260), nuclei=20, seed=seed)
        Image.fromarray(sample.source.pixels).save(folder / "tiles" / f"{seed}.png")
        Image.fromarray(sample.truth.array.astype("uint16")).save(folder / "tiles" / f"{seed}_labels.png")
    train_hovernet(folder)
    return folder


@pytest.mark.parametrize(("also", "best"), [((), 2), (("result.json",), 1)], ids=["finished", "under way"])
def test_a_removed_model_is_made_again_by_all_ranks_of_a_learner_that_restores_together(hovernet, also, best):
    """HoVer-Net's wraps its network anew, which waits for the other ranks."""
    weights = hovernet / "run" / "model" / "hovernet.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(weights.parent)
    for name in also:
        (hovernet / "run" / name).unlink()
    told = train_hovernet(hovernet, "--resume")
    assert told.count(f"it is made again from the checkpoint of epoch {best}") == 1
    assert weights.read_bytes() == before
