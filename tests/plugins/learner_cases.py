"""Small learners of both kinds, batches, and how two of them are compared; run as a script, one rank of two that learn together."""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stainbridge import Unpaired
from stainbridge_plugins.cyclegan import learner as cyclegan
from stainbridge_plugins.ugatit import learner as ugatit

SIDE = 32
SMALL = {
    "cyclegan": (cyclegan, {"channels": 8, "blocks": 2}),
    "ugatit": (ugatit, {"channels": 8, "blocks": 1, "local_layers": 3, "global_layers": 5}),
    "ugatit light": (ugatit, {"channels": 8, "blocks": 1, "local_layers": 3, "global_layers": 5, "light": True}),
}


def small(kind, *, seed=3, patch_px=SIDE, double=False, **settings):
    """A learner whose steps take a fraction of a second; `double` makes it compute in double precision."""
    module, own = SMALL[kind]
    settings = module.Training(**{**own, "channels_last": False, **settings})
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    try:
        one = module.learner(settings, device="cpu", seed=seed, mpp=0.25, patch_px=patch_px)
    finally:
        torch.set_default_dtype(torch.float32)
    if double:
        single = one.ensemble.signal
        one.ensemble.signal = lambda pixels: single(pixels).double()
    return one


def batches(count, pictures=2, side=SIDE):
    """Unpaired pictures with some structure: coarse noise and fine noise."""
    rng = np.random.default_rng(11)
    noise = rng.integers(0, 256, (count, 2, pictures, side // 4, side // 4, 3)).repeat(4, axis=3).repeat(4, axis=4)
    noise = (noise + rng.integers(0, 60, (count, 2, pictures, side, side, 3))).clip(0, 255).astype(np.uint8)
    return [Unpaired(ihc, he) for ihc, he in noise]


def state(one):
    """All that a learner is, as bytes and text."""
    found = one.snapshot()
    return {name: tensor.numpy().tobytes() for name, tensor in found.tensors.items()}, json.dumps(found.values)


def gradients(one):
    """Gradients by network and parameter, as the last step left them."""
    return {
        name: {key: parameter.grad.clone() for key, parameter in network.named_parameters()}
        for name, network in one.ensemble.networks.items()
    }


def relative(found, truth):
    """The length of the difference of two sets of tensors, as a share of the length of the second."""
    different = sum(float(((found[key].double() - truth[key].double()) ** 2).sum()) for key in truth)
    return math.sqrt(different / sum(float((tensor.double() ** 2).sum()) for tensor in truth.values()))


def check_compiled(kind, monkeypatch):
    """Hold a compiled learner against a plain one; compiled down to operators only, since machine code takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    one, plain = (small(kind, channels_last=True, compile=choice) for choice in (True, False))
    for batch in batches(2):
        found, truth = one.step(batch), plain.step(batch)
        assert all(found[name] == pytest.approx(truth[name], rel=1e-3) for name in truth)
    assert one.snapshot().tensors.keys() == plain.snapshot().tensors.keys()


def check_average_of_skipped_steps(kind):
    """Steps that half precision skips are not averaged, and later ones are."""
    one = small(kind, ema=0.9)
    (batch,) = batches(1)
    one.step(batch)
    before = one._average.snapshot()
    # A scale beyond the largest number makes every gradient infinite, as an overflow does.
    one.ensemble._scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    one.step(batch)
    after = one._average.snapshot()
    assert after.values == before.values == {"updates": 1}
    assert all(torch.equal(tensor, before.tensors[name]) for name, tensor in after.tensors.items())
    one.ensemble._scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    one.step(batch)
    assert one._average.snapshot().values == {"updates": 2}


def in_two_ranks(kind, folder, **settings):
    """Return (losses, gradients) per rank of a first step of two processes, each on one half of a batch of four pictures."""
    command = [sys.executable, __file__, kind, str(folder), json.dumps(settings)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE) for rank in range(2)]
    for rank in ranks:
        _, said = rank.communicate(timeout=120)
        assert rank.returncode == 0, said.decode()
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]


def _rank(kind, folder, settings, rank):
    from torch import distributed

    store = (Path(folder) / "store").as_uri()
    distributed.init_process_group("gloo", init_method=store, rank=int(rank), world_size=2)
    one = small(kind, double=True, **json.loads(settings))
    (batch,) = batches(1, pictures=4)
    half = slice(2 * int(rank), 2 * int(rank) + 2)
    losses = dict(one.step(Unpaired(batch.ihc[half], batch.he[half])))
    torch.save((losses, gradients(one)), Path(folder) / f"rank_{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    _rank(*sys.argv[1:])
