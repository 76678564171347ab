"""Time HoVer-Net on a CPU: bare torch in fp32, and through the plugin by torch and by OpenVINO; one process, one thread, calls in turn.

Mode fast with 6 types at full width; weights are random, and the normalisations' statistics taken from the picture, so that outputs are
of ordinary size. A picture of 328 x 328 px is four windows. Through the plugin, everything is timed: windows, network, nuclei.
Run: python benchmarks/speed/hovernet_network.py [--repeats 3]
"""

from __future__ import annotations

import argparse
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

from machine import medians, write

from stainbridge.testing import synthetic_he
from stainbridge_plugins.hovernet.network import Design, build
from stainbridge_plugins.hovernet.segmenter import HoVerNet
from stainbridge_plugins.hovernet.windows import windows_of

COMMAND = "python benchmarks/speed/hovernet_network.py"
DESIGN = Design("fast", 6)
SIDE = 2 * DESIGN.output_px
GFLOP_PER_WINDOW = 298.0


def settled(pixels: np.ndarray) -> torch.nn.Module:
    """Return a network with random weights whose normalisations have the statistics of a picture."""
    torch.manual_seed(0)
    network = build(DESIGN).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.inference_mode():
        network(batch(pixels[:1]))
    return network.eval()


def batch(windows: np.ndarray) -> torch.Tensor:
    """Return uint8 (n, h, w, 3) as the network takes it."""
    return torch.from_numpy(windows.transpose(0, 3, 1, 2).astype(np.float32))


def bare(network: torch.nn.Module, windows: np.ndarray) -> list[np.ndarray]:
    """Return the network's maps as its users write it: float32, one window after the other."""
    with torch.inference_mode():
        found = [network(batch(window[None])) for window in windows]
        return [
            np.concatenate(
                [one["tp"].softmax(1).argmax(1, keepdim=True), one["np"].softmax(1)[:, 1:], one["hv"]], axis=1
            )
            for one in found
        ]


def plugins(network: torch.nn.Module) -> dict[str, HoVerNet]:
    """Return the plugin as torch and OpenVINO run it."""
    ways = {"torch fp32": {}, "torch bf16": {"precision": "bf16"}}
    ways |= {f"openvino {p}": {"engine": "openvino", "precision": p} for p in ("fp32", "bf16")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.tar"
        torch.save({"desc": network.state_dict()}, path)
        return {name: HoVerNet(HoVerNet.Config(path=path, **way)) for name, way in ways.items()}


def with_processor(name: str, call: Callable[[], Any], spent: dict[str, list[float]]) -> Callable[[], Any]:
    """Return the call, which also writes down the seconds of processor that it took; other programs do not count there."""

    def timed() -> Any:
        start = time.process_time()
        found = call()
        spent.setdefault(name, []).append(time.process_time() - start)
        return found

    return timed


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pixels = synthetic_he(shape=(SIDE, SIDE), nuclei=40).source.pixels
    windows = windows_of(pixels, DESIGN.window_px, DESIGN.output_px)
    network = settled(windows)
    made = plugins(network)
    spent: dict[str, list[float]] = {}
    calls: dict[str, Any] = {"bare torch fp32": lambda: bare(network, windows)}
    calls |= {f"plugin {name}": lambda one=one: one.segment(pixels[None]) for name, one in made.items()}
    load = os.getloadavg()[0]
    seconds = medians({name: with_processor(name, call, spent) for name, call in calls.items()}, repeats=asked.repeats)
    processor = {name: statistics.median(values[1:]) for name, values in spent.items()}
    eager = seconds["bare torch fp32"]
    figures = {
        "windows": len(windows),
        "load_average_before": round(load, 2),
        "load_average_after": round(os.getloadavg()[0], 2),
        "median_s": {name: round(value, 3) for name, value in seconds.items()},
        "median_processor_s": {name: round(value, 3) for name, value in processor.items()},
        "gflop_per_s": {name: round(len(windows) * GFLOP_PER_WINDOW / value, 1) for name, value in seconds.items()},
        "bare torch fp32 / plugin": {n: round(eager / s, 3) for n, s in seconds.items() if n.startswith("plugin")},
        "bare torch fp32 / plugin, processor time": {
            n: round(processor["bare torch fp32"] / s, 3) for n, s in processor.items() if n.startswith("plugin")
        },
        "plugin torch fp32 / bare torch fp32": round(seconds["plugin torch fp32"] / eager, 3),
        "plugin torch fp32 / bare torch fp32, processor time": round(
            processor["plugin torch fp32"] / processor["bare torch fp32"], 3
        ),
    }
    print(figures)
    print(write("hovernet_network", COMMAND, figures, "torch", "openvino", "opencv-python-headless"))


if __name__ == "__main__":
    main()
