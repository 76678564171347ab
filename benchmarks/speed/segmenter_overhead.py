"""Time `stainbridge.run` against the bare library and the bare plugin on the same pixels, in one process, calls interleaved.

The picture is real H&E at the segmenter's own scale, so nothing is resampled, and with `identity` nothing is translated: what is
left beside the segmenter is reading, calibration, padding, stitching, measuring, classifying and scoring.

python benchmarks/speed/segmenter_overhead.py --segmenter instanseg/brightfield [--picture HE.png] [--side 512] [--repeats 5]

Without --picture the H&E is synthetic. Writes benchmarks/results/overhead_NAME.json.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import medians, write

import stainbridge
from stainbridge import Calibrated, Image, RunConfig, Segmenter
from stainbridge.stages import pad
from stainbridge.testing import synthetic_he

RESULT_COMMAND = "python benchmarks/speed/segmenter_overhead.py"


def bare_instanseg(segmenter: Segmenter, pixels: np.ndarray) -> Callable[[], Any]:
    """Return the call that InstanSeg's users write: percentiles with numpy, then the TorchScript with its own defaults."""
    import torch

    network = torch.jit.load(str(next(iter(segmenter.weights.values()))), map_location=segmenter.device).eval()

    def call() -> np.ndarray:
        planes = pixels.astype(np.float32).transpose(2, 0, 1).copy()
        for plane in planes:
            low, high = np.percentile(plane, [0.1, 99.9])
            plane[:] = (plane - low) / max(1e-3, high - low)
        with torch.inference_mode():
            return network(torch.from_numpy(planes)[None].to(segmenter.device)).cpu().numpy()

    return call


# The library without stainbridge, by plugin; a plugin that is not here is only compared with itself called directly.
LIBRARIES: dict[str, Callable[[Segmenter, np.ndarray], Callable[[], Any]]] = {"instanseg": bare_instanseg}


def bare_plugin(segmenter: Segmenter, pixels: np.ndarray) -> Callable[[], Any]:
    """Return one direct call of the plugin on the whole picture, calibrated to it, padded as its contract asks."""

    def call() -> np.ndarray:
        batch = pixels[None]
        fitted = segmenter.calibrate(batch) if isinstance(segmenter, Calibrated) else segmenter
        return fitted.segment(pad(batch, segmenter.wants))

    return call


def picture(path: Path | None, side: int, mpp: float) -> np.ndarray:
    """Return uint8 (side, side, 3): a crop of a real picture, repeated where it is smaller, or a synthetic one."""
    if path is None:
        return synthetic_he(shape=(side, side), nuclei=max(4, round((side * mpp) ** 2 / 250)), mpp=mpp).source.pixels
    from PIL import Image as Pillow

    whole = np.asarray(Pillow.open(path).convert("RGB"))
    extra = [max(0, side - length) for length in whole.shape[:2]]
    return np.ascontiguousarray(np.pad(whole, ((0, extra[0]), (0, extra[1]), (0, 0)), mode="symmetric")[:side, :side])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segmenter", default="instanseg/brightfield")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--registry", type=Path, action="append", default=[])
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    plugin = stainbridge.build(
        "segmenter", asked.segmenter, registries=asked.registry, device=asked.device, offline=False
    ).plugin
    mpp = plugin.wants.mpp or 0.5
    pixels = picture(asked.picture, asked.side, mpp)
    config = RunConfig(translator="identity", device=asked.device)
    calls = {
        "run": lambda: stainbridge.run(Image(pixels, mpp=mpp), segmenter=plugin, config=config),
        "plugin": bare_plugin(plugin, pixels),
    }
    if plugin.name in LIBRARIES:
        calls["library"] = LIBRARIES[plugin.name](plugin, pixels)
    load = os.getloadavg()[0]
    seconds = medians(calls, repeats=asked.repeats)
    figures = {
        "segmenter": asked.segmenter,
        "picture": asked.picture.name if asked.picture else "synthetic",
        "side_px": asked.side,
        "nuclei": len(calls["run"]().nuclei),
        "repeats": asked.repeats,
        "load_average_before": round(load, 2),
        "median_s": {name: round(value, 3) for name, value in seconds.items()},
        "run_over": {name: round(seconds["run"] / value, 3) for name, value in seconds.items() if name != "run"},
    }
    print(figures)
    command = f"{RESULT_COMMAND} --segmenter {asked.segmenter} --side {asked.side}"
    print(write(f"overhead_{plugin.name}", command, figures))


if __name__ == "__main__":
    main()
