"""How long HoVer-Net's network stands idle while nuclei are made of its maps, on threads and on processes.

In place of the network stands a pause, as a GPU that needs no processor would make; maps are synthetic (see hovernet_post.py). Idle is the
share of the whole time that is not such a pause. Run: python benchmarks/speed/hovernet_beside.py [--tiles 24] [--repeats 3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from hovernet_post import maps_of, plain
from machine import medians, write

from stainbridge_plugins.hovernet.network import Design, build
from stainbridge_plugins.hovernet.nuclei import nuclei_of
from stainbridge_plugins.hovernet.postprocessing import Rules
from stainbridge_plugins.hovernet.segmenter import HoVerNet

SIDE, BATCH = 1024, 4
SECONDS = (0.2, 0.1, 0.05)
COMMAND = "python benchmarks/speed/hovernet_beside.py"


def segmenter(folder: Path, beside: str, workers: int) -> HoVerNet:
    """Return HoVer-Net with a network that is never run."""
    path = folder / "any.tar"
    torch.save({"desc": build(Design("fast", 0, 8)).state_dict()}, path)
    return HoVerNet(HoVerNet.Config(path=path, beside=beside, workers=workers))


def idle(plugin: HoVerNet, maps: np.ndarray, pause: float, tiles: int, *, ahead: bool) -> float:
    """Return the share of the time in which the network has nothing to do; `ahead`: batches are given before results are taken."""

    def paused(picture: np.ndarray) -> np.ndarray:
        time.sleep(pause)
        return maps

    plugin._maps = paused
    batches = [np.zeros((BATCH, SIDE, SIDE, 3), np.uint8)] * (tiles // BATCH)
    begin = time.perf_counter()
    for _ in plugin.stream(batches) if ahead else map(plugin.describe, batches):
        pass
    return 1 - tiles * pause / (time.perf_counter() - begin)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    cv2.setNumThreads(1)
    maps = maps_of(SIDE, plain())[0]
    made = medians({"post": lambda: nuclei_of(maps, Rules())})["post"]
    print(f"{SIDE} px: nuclei of one tile take {made * 1000:.0f} ms")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for beside, ahead in (("threads", False), ("threads", True), ("processes", True)):
            plugin = segmenter(Path(folder), beside, 2)
            idle(plugin, maps, 0.01, BATCH, ahead=True)  # starts the processes
            for pause in SECONDS:
                found = median(idle(plugin, maps, pause, chosen.tiles, ahead=ahead) for _ in range(chosen.repeats))
                rows.append({"beside": beside, "ahead": ahead, "network_s_per_tile": pause, "idle": round(found, 3)})
                print(
                    f"{beside:9} {'ahead' if ahead else 'by batch':8} {pause:.2f} s/tile: idle {found:.1%}", flush=True
                )
    write(
        "hovernet_beside",
        COMMAND,
        {"side_px": SIDE, "tiles": chosen.tiles, "post_ms": round(made * 1000), "rows": rows},
    )


if __name__ == "__main__":
    main()
