"""A small CycleGAN trained by two processes over gloo: same gradients as one process, and killed ranks cost time and nothing else."""

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")

from stainbridge.training import launch

sys.path.insert(0, str(Path(__file__).parent))
from train_distributed_work import gradients_of_first_step

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent


def two_ranks(module, *arguments):
    """Return the command that runs a module of this folder as two ranks."""
    command = launch.torchrun(arguments, 2)
    command[command.index("stainbridge")] = module
    return command


@pytest.fixture(scope="module")
def shared_step(tmp_path_factory):
    """Losses and gradients of each of two ranks that share a batch."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("gradients")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = two_ranks("train_distributed_work", str(folder))
    assert launch.keep_going(command, command, folder, restarts=0, environment=environment) == 0
    return [load_file(folder / f"rank_{rank}.safetensors") for rank in (0, 1)]


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
