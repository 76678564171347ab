"""One learning step of a small CycleGAN on this rank's share of a batch; ``python -m train_distributed_work FOLDER`` under torchrun."""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from stainbridge import Unpaired
from stainbridge.training.group import joined
from stainbridge_plugins.cyclegan.learner import CycleGANLearner, Training

SETTINGS = Training(channels=8, blocks=2, layers=2)


def whole_batch():
    """Return four pictures of each stain, all different."""
    rng = np.random.default_rng(5)
    return Unpaired(*(rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8) for _ in range(2)))


def gradients_of_first_step(rank, world):
    """Return the losses, and the gradients by network and parameter, after one step on every `world`-th picture."""
    torch.use_deterministic_algorithms(True)
    learner = CycleGANLearner(SETTINGS, device="cpu", seed=3, mpp=0.25, patch_px=64)
    learner.begin(1, 2, 1)
    batch = whole_batch()
    losses = dict(learner.step(Unpaired(batch.ihc[rank::world], batch.he[rank::world])))
    return losses, {
        f"{name}/{key}": parameter.grad.clone().contiguous()
        for name, network in learner.ensemble.networks.items()
        for key, parameter in network.named_parameters()
    }


if __name__ == "__main__":
    with joined("cpu") as here:
        losses, gradients = gradients_of_first_step(here.rank, here.world)
        found = gradients | {f"loss/{name}": torch.tensor(value) for name, value in losses.items()}
        save_file(found, Path(sys.argv[1]) / f"rank_{here.rank}.safetensors")
