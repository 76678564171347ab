"""Time HoVer-Net's post-processing with the table of nuclei against the same steps written plainly, in one process and thread.

The maps are synthetic: labels, from them the network's targets by their formula, blurred and with noise. Both sides must give the
same pixels and the same rows. Run: python benchmarks/speed/hovernet_post.py [--sides 512 1024 2048] [--repeats 5]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import medians, write

from stainbridge.testing.synthetic import synthetic_labels
from stainbridge_plugins.hovernet.measuring import measure
from stainbridge_plugins.hovernet.postprocessing import Rules, find_instances

NUCLEI = {256: 50, 512: 200, 1024: 1250, 2048: 5000}
MUST = {256: 3, 512: 3, 1024: 5, 2048: 12}
COMMAND = "python benchmarks/speed/hovernet_post.py"


def plain() -> Any:
    """Return the plain reference of the tests."""
    path = Path(__file__).resolve().parents[2] / "tests" / "plugins" / "hovernet_reference.py"
    spec = importlib.util.spec_from_file_location("hovernet_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def maps_of(side: int, reference: Any, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 (3, H, W), probability and distances, and the types uint8 (H, W)."""
    labels = synthetic_labels((side, side), NUCLEI[side], rng=seed, mpp=0.45, gap_px=0).array
    rng = np.random.default_rng(seed)
    planes = np.dstack([(labels > 0).astype(np.float32), reference.distances(labels)])
    planes = cv2.GaussianBlur(planes, (0, 0), 1.0) + rng.normal(0, 0.03, planes.shape)
    types = np.where(rng.random(labels.shape) < 0.05, 0, labels % 5).astype(np.uint8)
    return np.ascontiguousarray(planes.transpose(2, 0, 1), np.float32), types


def ours(maps: np.ndarray, types: np.ndarray) -> Any:
    """Return labels and table of the plugin."""
    labels = find_instances(maps[0], maps[1:], Rules())
    return labels, measure(labels, types)


def differences(maps: np.ndarray, types: np.ndarray, reference: Any) -> dict[str, int]:
    """Count pixels and rows that are not the reference's, whatever the order of ids."""
    labels, table = ours(maps, types)
    expected = reference.instances(np.ascontiguousarray(maps.transpose(1, 2, 0)))
    rows = reference.table(expected, types)
    order = np.zeros(int(labels.max()) + 1, np.int64)
    order[labels.ravel()] = expected.ravel()
    wrong = 0
    for index, label in enumerate(table.ids):
        row = rows.pop(int(order[label]), None)
        same = row is not None and (
            np.array_equal(table.boxes[index], np.ravel(row["box"]))
            and np.array_equal(table.centroids[index], row["centroid"])
            and np.array_equal(table.contours[index], row["contour"])
            and (table.types[index], table.shares[index]) == (row["type"], row["share"])
        )
        wrong += not same
    return {"pixels": int((order[labels] != expected).sum()), "rows": wrong + len(rows)}


def one_side(side: int, reference: Any, repeats: int) -> dict[str, Any]:
    """Compare and time maps of one size."""
    maps, types = maps_of(side, reference)
    last = np.ascontiguousarray(maps.transpose(1, 2, 0))
    labels = find_instances(maps[0], maps[1:], Rules())
    calls = {
        "reference": lambda: reference.table(reference.instances(last), types),
        "ours": lambda: ours(maps, types),
        "ours, table only": lambda: measure(labels, types),
    }
    seconds = medians(calls, repeats=repeats)
    return {
        "nuclei": int(labels.max()),
        "different": differences(maps, types, reference),
        "milliseconds": {name: round(1000 * value, 2) for name, value in seconds.items()},
        "reference / ours": round(seconds["reference"] / seconds["ours"], 2),
        "must": MUST[side],
    }


def threads(reference: Any, *, count: int = 2, each: int = 4) -> dict[str, Any]:
    """Tell how long threads that each do maps of 1024 px compute, and how long they wait for one another (Linux only).

    Waiting for a processor, which other programs may have, is counted apart.
    """
    given = [maps_of(1024, reference, seed=seed) for seed in range(count)]
    start = threading.Barrier(count)

    def work(pair: Any) -> tuple[float, float, float]:
        start.wait()
        before = scheduled()
        for _ in range(each):
            ours(*pair)
        return tuple(after - earlier for after, earlier in zip(scheduled(), before, strict=True))

    with ThreadPoolExecutor(count) as pool:
        wall, computing, queue = map(sum, zip(*pool.map(work, given), strict=True))
    waiting = wall - computing - queue
    return {
        "threads": count,
        "computing_s": round(computing, 3),
        "waiting_for_each_other_s": round(waiting, 3),
        "as_many_threads_that_never_wait": round(count * computing / (computing + waiting), 2),
    }


def scheduled() -> tuple[float, float, float]:
    """Return the time, and this thread's seconds on a processor and in the queue for one."""
    path = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    running, queued, _ = path.read_text().split()
    return time.perf_counter(), int(running) / 1e9, int(queued) / 1e9


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", choices=NUCLEI, default=[512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    reference = plain()
    figures = {"load_average_before": round(os.getloadavg()[0], 2)}
    for side in asked.sides:
        figures[f"{side} px"] = one_side(side, reference, asked.repeats)
        print(side, figures[f"{side} px"], flush=True)
    if Path("/proc/self/schedstat").exists():
        figures["maps of 1024 px in threads"] = threads(reference)
    figures["load_average_after"] = round(os.getloadavg()[0], 2)
    print(figures)
    print(write("hovernet_post", COMMAND, figures, "opencv-python-headless", "scikit-image", "scipy"))


if __name__ == "__main__":
    main()
