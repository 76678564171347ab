"""Time CycleGAN's generator as the translator runs it against the original's way: fp32, NCHW, `InstanceNorm2d`, eager.

Calls take turns in one process, on one thread of a CPU or on a GPU, with the matrix product in bf16 as the measure of what the
machine can do. The same weights everywhere: random, then taught for a minute to imitate the `deconvolution` translator on the real
picture that is translated, so that the virtual H&E has nuclei. What other arithmetic changes is stated in grey levels and in nuclei.

python benchmarks/speed/generator.py [--device cuda] [--repeats 7] [--teach 150] [--without compile] [--json OUT]

Writes benchmarks/results/generator.json, or generator_cuda.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import machine
from generator_nuclei import nuclei_apart, picture, tiled, untiled

from stainbridge.torchkit.engines import engine
from stainbridge.torchkit.normalisation import fix, gather
from stainbridge.torchkit.prepared import prepared
from stainbridge_plugins.baseline.translators import Deconvolution
from stainbridge_plugins.cyclegan.networks import generator, initialise
from stainbridge_plugins.cyclegan.translator import CycleGAN

GFLOP = 99.1
"""Of one tile of 256 px, two per multiplication and addition."""
SIDE = 256


def taught(network: torch.nn.Module, ihc: np.ndarray, steps: int, device: torch.device) -> torch.nn.Module:
    """Teach a generator to imitate colour deconvolution on crops of 64 px of one picture, uint8 (H, W, 3)."""
    he = Deconvolution().calibrate(ihc[None]).translate(ihc[None])[0]
    network = network.to(device).train()
    optimiser, draw = torch.optim.Adam(network.parameters(), 5e-4), np.random.default_rng(0)
    for _ in range(steps):
        corners = draw.integers(0, [side - 64 for side in ihc.shape[:2]], (2, 2))
        crops = [np.stack([one[y : y + 64, x : x + 64] for y, x in corners]) for one in (ihc, he)]
        given, wanted = (signal(one, device) for one in crops)
        optimiser.zero_grad()
        (network(given) - wanted).abs().mean().backward()
        optimiser.step()
    return network.cpu().eval()


def signal(batch: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return uint8 (N, H, W, 3) as the original's loader gives it: float32 (N, 3, H, W) in [-1, 1], contiguous."""
    planes = np.ascontiguousarray(batch.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    return ((torch.from_numpy(planes) - 0.5) / 0.5).to(device)


def as_published(network: torch.nn.Module) -> torch.nn.Module:
    """Return the same weights with torch's own instance normalisation."""
    found = copy.deepcopy(network)
    for layer in list(found.modules()):
        for name, child in layer.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(layer, name, torch.nn.InstanceNorm2d(child.num_channels))
    return found.eval()


def original(network: torch.nn.Module, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """Return what the original's test script does with uint8 (N, H, W, 3)."""
    plain = as_published(network).to(device)

    def translate(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            made = plain(signal(batch, device)).cpu().numpy()
        return ((made.transpose(0, 2, 3, 1) + 1) / 2.0 * 255.0).astype(np.uint8)

    return translate


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Return medians of seconds on the clock, and on a CPU of seconds of the process, which other work disturbs less."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start, used = time.perf_counter(), time.process_time()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
    found = {"s": {name: statistics.median(values) for name, values in wall.items()}}
    if device.type == "cpu":
        found["cpu_s"] = {name: statistics.median(values) for name, values in cpu.items()}
    return found


def products(device: torch.device) -> dict[str, tuple[Callable[[], Any], float]]:
    """Return products of bf16 matrices and their GFLOP: a square one, and on a CPU one of a block's convolution besides."""
    square = 8192 if device.type == "cuda" else 2048
    shapes = {"square": (square, square, square)}
    if device.type == "cpu":
        shapes["convolution"] = (4096, 2304, 256)
    found = {}
    for name, (rows, inner, columns) in shapes.items():
        a, b = (torch.randn(shape, device=device).bfloat16() for shape in ((rows, inner), (inner, columns)))
        found[f"bf16 matmul, {name}"] = (
            lambda a=a, b=b: [a @ b for _ in range(4)],
            4 * 2 * rows * inner * columns / 1e9,
        )
    return found


def translators(path: Path, ihc: np.ndarray, asked: argparse.Namespace, failed: dict[str, str]) -> dict[str, CycleGAN]:
    """Return the plugin in its modes, calibrated to the picture; what cannot be made on this machine goes into `failed`."""
    modes: dict[str, dict[str, Any]] = {
        "default": {},
        "fp32": {"precision": "fp32"},
        "slide": {"statistics": "slide"},
        "compile": {"engine": "compile"},
        "openvino": {"engine": "openvino"},
        "slide, openvino": {"statistics": "slide", "engine": "openvino"},
    }
    without = {*asked.without, *(["openvino"] if asked.device != "cpu" else [])}
    made = {}
    for name, settings in modes.items():
        if settings.get("engine") in without:
            continue
        config = CycleGAN.Config(path=path, batch_size=asked.batch, **settings)
        try:
            made[name] = CycleGAN(config, device=asked.device).calibrate(ihc[None])
        except Exception as error:  # one mode that a machine lacks the means for must not lose the others
            failed[name] = told(error)
    return made


def told(error: Exception) -> str:
    """Return an error in a line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def networks(network: torch.nn.Module, batch: np.ndarray, asked: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return calls of the networks alone, on a card: what it computes without moving pictures to it and back."""
    device = torch.device(asked.device)
    plain, given = as_published(network).to(device), signal(batch, device)
    ours = given.bfloat16().contiguous(memory_format=torch.channels_last)
    slide = fix(network, gather(network, signal(batch[:4], torch.device("cpu"))))
    forms = {
        "": prepared(network, dtype=torch.bfloat16, device=device),
        "slide, ": prepared(slide, dtype=torch.bfloat16, device=device),
    }
    calls = {f"network, eager {kind}": eager(plain, given, tf32=kind == "tf32") for kind in ("fp32", "tf32")}
    for form, prepared_network in forms.items():
        for name in ("torch", "compile"):
            if name not in asked.without:
                run = engine(prepared_network, name, device=device, precision="bf16")
                calls[f"network, {form}{name}"] = lambda run=run: run(ours)
    return calls


def eager(plain: torch.nn.Module, given: torch.Tensor, *, tf32: bool) -> Callable[[], Any]:
    """Return a call of a network with TF32 switched as said, and back."""

    def call() -> Any:
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = tf32
        try:
            return plain(given)
        finally:
            torch.backends.cudnn.allow_tf32 = before

    return call


def started(calls: dict[str, Callable[[], Any]], device: torch.device, failed: dict[str, str]) -> dict[str, Any]:
    """Call each twice; return the seconds of its first call and its peak memory by name; what fails goes into `failed`."""
    facts: dict[str, Any] = {}
    for name, call in calls.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        try:
            call()
            facts[name] = {"first_call_s": round(time.perf_counter() - start, 2)}
            call()
        except Exception as error:  # as above
            facts.pop(name, None)
            failed[name] = told(error)
            continue
        if device.type == "cuda":
            facts[name]["peak_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return facts


def differences(
    made: dict[str, Any], expected: dict[str, np.ndarray], tiles: np.ndarray, shape: tuple[int, int]
) -> dict[str, Any]:
    """Return how far each mode's picture, put together from its tiles, is from fp32 with statistics of the same kind."""
    found = {}
    for name, plugin in made.items():
        kind = plugin.config.statistics
        translated = untiled(plugin.translate(tiles), shape)
        apart = np.abs(translated.astype(int) - expected[kind])
        levels = {"mean": round(float(apart.mean()), 4), "max": int(apart.max())}
        found[name] = {"statistics": kind, "grey_levels": levels, "nuclei": nuclei_apart(expected[kind], translated)}
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--generator", type=Path, help="weights of a generator that was trained, instead of the taught one"
    )
    parser.add_argument("--teach", type=int, default=150, help="steps")
    parser.add_argument("--batch", type=int, default=16, help="tiles at once on a GPU")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--without", action="append", default=[], choices=["compile", "openvino"])
    parser.add_argument("--json", type=Path, help="where to write, instead of benchmarks/results")
    asked = parser.parse_args()
    device, load = torch.device(asked.device), os.getloadavg()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ihc = picture()
    tiles = tiled(ihc, SIDE)
    with tempfile.TemporaryDirectory() as folder:
        path = asked.generator or Path(folder, "generator.pth")
        if asked.generator is None:
            network = generator()
            initialise(network, 0)
            torch.save(taught(network, ihc, asked.teach, device).state_dict(), path)
        from stainbridge_plugins.cyclegan.checkpoint import read_generator

        figures = measured(read_generator(path)[0], path, ihc, tiles, asked)
    figures["load_average_before"] = [round(one, 2) for one in load]
    figures["weights"] = asked.generator.name if asked.generator else f"taught, {asked.teach} steps"
    print(json.dumps(figures, indent=2))
    name = "generator" if device.type == "cpu" else "generator_cuda"
    command = f"python benchmarks/speed/generator.py --device {asked.device}"
    if asked.json:
        libraries = ("torch", "openvino") if device.type == "cpu" and "openvino" not in asked.without else ("torch",)
        record = {"command": command, "machine": machine.facts(*libraries), "figures": figures}
        asked.json.write_text(json.dumps(record, indent=2) + "\n")
        return
    print(machine.write(name, command, figures, "torch", *(["openvino"] if device.type == "cpu" else [])))


def measured(
    network: torch.nn.Module, path: Path, ihc: np.ndarray, tiles: np.ndarray, asked: argparse.Namespace
) -> dict[str, Any]:
    """Return every figure of one machine."""
    device = torch.device(asked.device)
    batch = tiles[:1] if device.type == "cpu" else np.resize(tiles, (asked.batch, *tiles.shape[1:]))
    failed: dict[str, str] = {}
    plain, made = original(network, device), translators(path, ihc, asked, failed)
    torch.backends.cudnn.allow_tf32 = False
    calls: dict[str, Callable[[], Any]] = {"eager fp32": lambda: plain(batch)}
    calls |= {name: (lambda plugin=plugin: plugin.translate(batch)) for name, plugin in made.items()}
    if device.type == "cuda":
        calls |= networks(network, batch, asked)
    rates = products(device)
    calls |= {name: call for name, (call, _) in rates.items()}
    with torch.inference_mode():
        facts = started(calls, device, failed)
        times = interleaved({name: calls[name] for name in facts}, asked.repeats, device)
    slide = CycleGAN(CycleGAN.Config(path=path, precision="fp32", statistics="slide"), device=asked.device)
    whole = {
        "tile": np.concatenate([plain(tile[None]) for tile in tiles]),
        "slide": slide.calibrate(ihc[None]).translate(tiles),
    }
    expected = {kind: untiled(cut, ihc.shape[:2]) for kind, cut in whole.items()}
    return {
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "tile_px": SIDE,
        "batch": len(batch),
        "repeats": asked.repeats,
        "precision": made["default"].config.precision,
        "modes": summary(times, facts, {name: gflop for name, (_, gflop) in rates.items()}, len(batch)),
        "failed": failed,
        "against_fp32": differences(
            {name: plugin for name, plugin in made.items() if name in facts}, expected, tiles, ihc.shape[:2]
        ),
    }


def summary(
    times: dict[str, dict[str, float]], facts: dict[str, Any], gflop: dict[str, float], batch: int
) -> dict[str, dict[str, Any]]:
    """Return per mode its times, rate, share of the best bf16 product, and how many times faster than eager fp32 it is."""
    found: dict[str, dict[str, Any]] = {}
    for clock, medians in times.items():
        suffix = "" if clock == "s" else "_by_cpu_time"
        best = max(gflop[name] / medians[name] for name in gflop)
        for name, seconds in medians.items():
            rate = gflop.get(name, GFLOP * batch) / seconds
            row = found.setdefault(name, dict(facts[name]))
            row[f"median_{clock}"] = round(seconds, 5)
            row[f"gflops{suffix}"] = round(rate, 1)
            if name in gflop:
                continue
            base = "network, eager fp32" if name.startswith("network") else "eager fp32"
            row[f"of_bf16_matmul{suffix}"] = round(rate / best, 3)
            row[f"times_eager_fp32{suffix}"] = round(medians[base] / seconds, 3)
            if clock == "s":
                row["tiles_per_s"] = round(batch / seconds, 2)
    return found


if __name__ == "__main__":
    main()
