"""What a rank does in a test: ``-m train_distributed_work step FOLDER DEVICE`` or ``... meet FOLDER`` under torchrun."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from stainbridge import Unpaired
from stainbridge.training import group
from stainbridge.training.group import joined
from stainbridge_plugins.cyclegan.learner import CycleGANLearner, Training

SETTINGS = Training(channels=8, blocks=2, layers=2, precision="fp32")


def whole_batch():
    """Return four pictures of each stain, all different."""
    rng = np.random.default_rng(5)
    return Unpaired(*(rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8) for _ in range(2)))


def gradients_of_first_step(rank, world, device="cpu"):
    """Return the losses, and the gradients by network and parameter, after one step on every `world`-th picture."""
    learner = CycleGANLearner(SETTINGS, device=device, seed=3, mpp=0.25, patch_px=64)
    learner.begin(1, 2, 1)
    batch = whole_batch()
    losses = dict(learner.step(Unpaired(batch.ihc[rank::world], batch.he[rank::world])))
    return losses, {
        f"{name}/{key}": parameter.grad.cpu().contiguous()
        for name, network in learner.ensemble.networks.items()
        for key, parameter in network.named_parameters()
    }


def step(folder, device):
    """Keep losses and gradients of one step on this rank's share of a batch."""
    with joined(device) as here:
        losses, gradients = gradients_of_first_step(here.rank, here.world, here.device)
        found = gradients | {f"loss/{name}": torch.tensor(value) for name, value in losses.items()}
        save_file(found, Path(folder) / f"rank_{here.rank}.safetensors")
        here.meet()


def meet(folder):
    """Keep the seconds that each rank waited for the other, first for rank 0 and then for rank 1, with a limit of 2 s."""
    group.TIMEOUT_S = 2.0
    with joined("cpu") as here:
        for late in (0, 1):
            here.meet()
            time.sleep(6 if here.rank == late else 0)
            began = time.monotonic()
            try:
                here.meet()
            finally:
                (Path(folder) / f"{late}_by_{here.rank}").write_text(f"{time.monotonic() - began}")


if __name__ == "__main__":
    {"step": step, "meet": meet}[sys.argv[1]](*sys.argv[2:])
