"""CycleGAN's training step against the original's: time, memory, and the losses of many steps from the same weights and batches.

The original's step is that of the tests: single precision (torch's default, so convolutions in TF32 on a GPU), `InstanceNorm2d`, NCHW, one
forward pass at a time, every loss read for the log. First of all, gradients of both normalisations are held against double precision.

Run: python benchmarks/speed/training_step.py --device cuda --compile --ihc DIR --he DIR
     python benchmarks/speed/training_step.py               (small, on a CPU)
Needs: torch. Pictures to cut patches from, for the losses; without folders, scikit-image's IHC and itself with DAB turned into eosin.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "plugins"))

from cyclegan_reference import Reference
from machine import medians, write

from stainbridge import Unpaired
from stainbridge.torchkit.normalisation import instance_norm
from stainbridge_plugins.cyclegan.learner import Training, learner

NAMES = ("generator_he", "generator_ihc", "discriminator_he", "discriminator_ihc")
WINDOW = 20
"""Steps whose losses are averaged before two runs are compared."""

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "channels_last": False},
    "bf16": {"precision": "bf16", "channels_last": True},
    "bf16 nchw": {"precision": "bf16", "channels_last": False},
    "bf16 compiled": {"precision": "bf16", "channels_last": True, "fused": True, "compile": True},
}
"""Our step by the settings that make it."""

NUDGED = "original, nudged"
"""The original from weights that differ in their last digit: how far rounding alone takes two runs apart."""


class Bench:
    """Makes both steps of one size on one device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.side = options.device, options.side
        self.nets = {"channels": options.channels, "blocks": options.blocks}
        self.cuda = options.device.startswith("cuda")

    def ours(self, variant: str) -> Any:
        """Return a fresh learner."""
        settings = Training(**self.nets, **VARIANTS[variant])
        return learner(settings, device=self.device, seed=0, mpp=0.25, patch_px=self.side)

    def original(self, *, nudge: float = 0.0) -> Reference:
        """Return the original's step with the first weights of `ours`, each moved by a share of itself of about `nudge`."""
        plain = learner(
            Training(**self.nets, **VARIANTS["fp32"]), device=self.device, seed=0, mpp=0.25, patch_px=self.side
        )
        networks = [copy.deepcopy(plain.ensemble.networks[name]) for name in NAMES]
        with torch.no_grad():
            for tensor in (tensor for network in networks for tensor in network.parameters() if nudge):
                tensor.mul_(1 + nudge * torch.randn_like(tensor))
        return Reference(*networks, seed=0)

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def noise(self, pictures: int) -> Unpaired:
        """Return a batch to time with."""
        pixels = np.random.default_rng(0).integers(0, 256, (2, pictures, self.side, self.side, 3), np.uint8)
        return Unpaired(*pixels)


def gradient_errors(device: str) -> dict[str, float]:
    """Return relative errors of the gradient of both normalisations, by format and batch, against the formula in double precision."""
    found = {}
    for pictures in (1, 2):
        x, pull = (torch.rand(pictures, 64, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
        exact = x.double().requires_grad_()
        centred = exact - exact.mean((2, 3), keepdim=True)
        (centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()).backward(pull.double())
        for order, memory in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
            for name, norm in (("ours", instance_norm(64)), ("InstanceNorm2d", torch.nn.InstanceNorm2d(64))):
                own = x.to(device, memory_format=memory, copy=True).requires_grad_()
                norm.to(device)(own).backward(pull.to(device, memory_format=memory))
                error = (own.grad.cpu() - exact.grad).norm() / exact.grad.norm()
                found[f"{name}, {order}, batch {pictures}"] = float(error)
    return found


def ready(bench: Bench, name: str, batch: Unpaired) -> tuple[Any, dict[str, float]]:
    """Return a call that takes one step of a contestant and reads its losses, and what it took to start and takes to run.

    Memory is that of weights, optimisers and activations, above what was there before.
    """
    before = torch.cuda.memory_allocated() if bench.cuda else 0
    one = bench.original() if name == "original" else bench.ours(name)

    def call() -> dict[str, float]:
        return dict(one.step(*batch) if name == "original" else one.step(batch))

    start = time.perf_counter()
    for _ in range(3):
        call()
    bench.wait()
    figures = {"first_steps_s": time.perf_counter() - start}
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
        call()
        figures["peak_gb"] = (torch.cuda.max_memory_allocated() - before) / 1e9
    print(f"{name}: {figures}", flush=True)
    return call, figures


def timings(bench: Bench, names: list[str], pictures: int, repeats: int) -> dict[str, Any]:
    """Return pairs of pictures per second of each contestant, in turns, and what it takes to start."""
    batch, calls, figures = bench.noise(pictures), {}, {}
    for name in names:
        calls[name], figures[name] = ready(bench, name, batch)
    seconds = medians({name: lambda call=call: (call(), bench.wait()) for name, call in calls.items()}, repeats=repeats)
    for name, value in seconds.items():
        figures[name] |= {
            "step_ms": 1e3 * value,
            "pairs_per_s": pictures / value,
            "original / this": seconds["original"] / value,
        }
    return figures


def pictures_of(paths: list[Path], stain: str) -> list[np.ndarray]:
    """Return the 8-bit colour pictures of files and folders, uint8 (H, W, 3) each, or the stand-in."""
    from skimage import color, data, io

    if paths:
        files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        read = [io.imread(file) for file in files if file.suffix.lower() in (".png", ".jpg", ".tif", ".tiff")]
        return [one[..., :3] for one in read if one.ndim == 3 and one.dtype == np.uint8]
    ihc = data.immunohistochemistry()
    if stain == "ihc":
        return [ihc]
    stains = color.rgb2hed(ihc)
    stains[..., 1], stains[..., 2] = stains[..., 1] + stains[..., 2], 0.0
    return [(255 * color.hed2rgb(stains)).round().astype(np.uint8)]


def patches(pictures: list[np.ndarray], side: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return random patches, mirrored at random, uint8 (count, side, side, 3)."""
    large = [one for one in pictures if min(one.shape[:2]) >= side]
    found = []
    for _ in range(count):
        one = large[rng.integers(len(large))]
        y, x = (int(rng.integers(length - side + 1)) for length in one.shape[:2])
        patch = one[y : y + side, x : x + side]
        found.append(patch[:, ::-1] if rng.random() < 0.5 else patch)
    return np.stack(found)


def courses(bench: Bench, names: list[str], options: argparse.Namespace) -> dict[str, dict[str, np.ndarray]]:
    """Return the losses of each contestant at every step, from the same weights, batches and draws of the pool."""
    rng = np.random.default_rng(1)
    sides = [pictures_of(folder, stain) for folder, stain in ((options.ihc, "ihc"), (options.he, "he"))]
    batches = [Unpaired(*(patches(side, bench.side, 1, rng) for side in sides)) for _ in range(options.steps)]
    found = {}
    for name in names:
        plain = name in ("original", NUDGED)
        one = bench.original(nudge=1e-7 * (name == NUDGED)) if plain else bench.ours(name)
        losses = [dict(one.step(*batch) if plain else one.step(batch)) for batch in batches]
        found[name] = {key: np.array([each[key] for each in losses]) for key in losses[0]}
    return found


def apart(course: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return relative differences of each loss, and of what generators and discriminators minimise.

    Of the mean over all steps, and the largest of the means over windows of steps.
    """

    def sums(losses: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        judges = sum(value for name, value in losses.items() if name.startswith("discriminator"))
        return {**losses, "discriminators": judges, "generators": sum(losses.values()) - judges}

    def largest(length: int) -> dict[str, float]:
        own, other = (
            {name: np.convolve(one, np.full(length, 1 / length), "valid") for name, one in sums(losses).items()}
            for losses in (course, truth)
        )
        return {name: float(np.max(np.abs(own[name] / other[name] - 1))) for name in other}

    steps = len(next(iter(truth.values())))
    return {"all steps": largest(steps), f"worst {WINDOW} steps": largest(min(WINDOW, steps))}


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, help="of the patches, in px; 256 on CUDA, 64 on a CPU")
    parser.add_argument("--channels", type=int, help="64 on CUDA, 16 on a CPU")
    parser.add_argument("--blocks", type=int, help="9 on CUDA, 3 on a CPU")
    parser.add_argument(
        "--batch", type=int, nargs="*", help="sizes to time; 10 and 1 on CUDA, 2 on a CPU; none: no timing"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--steps", type=int, help="whose losses are compared; 200 on CUDA, 30 on a CPU; 0: no comparison"
    )
    parser.add_argument(
        "--compile", action="store_true", help="time compiled networks too: a minute or more for compiling"
    )
    for stain in ("ihc", "he"):
        parser.add_argument(f"--{stain}", type=Path, nargs="+", default=[], help="files, or folders of pictures")
    parser.add_argument("--json", type=Path, help="instead of benchmarks/results/training_step.json")
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    small = {"side": 64, "channels": 16, "blocks": 3, "batch": [2], "steps": 30}
    large = {"side": 256, "channels": 64, "blocks": 9, "batch": [10, 1], "steps": 200}
    for name, value in (large if cuda else small).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    """Print the figures and write them down; fails if the gradient of our normalisation is wrong on this device."""
    options = arguments()
    bench = Bench(options)
    names = ["fp32"] if not bench.cuda else [name for name in VARIANTS if options.compile or "compiled" not in name]
    with torch.random.fork_rng(devices=[]):
        figures: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if bench.cuda else "cpu",
            "torch": torch.__version__,
            "tf32 convolutions": bool(torch.backends.cudnn.allow_tf32) if bench.cuda else None,
            "networks": {**bench.nets, "side_px": bench.side},
            "gradient errors": gradient_errors(options.device),
        }
    print(json.dumps(figures, indent=2), flush=True)
    wrong = {name: one for name, one in figures["gradient errors"].items() if name.startswith("ours") and one > 1e-4}
    # The original lets cuDNN search too.
    torch.backends.cudnn.benchmark = True
    for pictures in options.batch:
        figures[f"batch {pictures}"] = timings(bench, ["original", *names], pictures, options.repeats)
        print(json.dumps(figures[f"batch {pictures}"], indent=2), flush=True)
    if options.steps:
        compared = [name for name in names if name in ("fp32", "bf16", "bf16 compiled")]
        found = courses(bench, ["original", NUDGED, *compared], options)
        differences = {name: apart(found[name], found["original"]) for name in (NUDGED, *compared)}
        last = {name: {key: float(value[-WINDOW:].mean()) for key, value in one.items()} for name, one in found.items()}
        figures[f"losses of {options.steps} steps"] = {
            "relative difference to the original": differences,
            "last": last,
        }
        print(json.dumps(figures[f"losses of {options.steps} steps"], indent=2), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    else:
        print(write("training_step", " ".join(["python", *sys.argv]), figures, "torch"))
    if wrong:
        sys.exit(f"The gradient of our instance normalisation is wrong on this device: {wrong}")


if __name__ == "__main__":
    main()
