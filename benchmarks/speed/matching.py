"""Time instance matching against what others do on the same labels: one process, one thread, calls interleaved, medians.

OMP_NUM_THREADS=1 python benchmarks/speed/matching.py [--large]

Needs stardist (TensorFlow is not used) and cellpose. Writes benchmarks/results/matching_speed.json. `--large` adds 4096 px with 20,000
nuclei, where stardist takes about 10 GB and half a minute for its one threshold.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import write

from stainbridge.overlap import match_counts, matched, overlaps

SWEEP = tuple(range(50, 101, 5))
EXACT = (10, 20, 30, 40, *SWEEP)


def discs(size: int, nuclei: int, seed: int) -> np.ndarray:
    """Draw about `nuclei` discs on a jittered grid; some touch and cover one another."""
    side = round(nuclei**0.5)
    step = size / side
    radius = int(0.45 * step)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    inside = y**2 + x**2 <= radius**2
    labels = np.zeros((size, size), np.int32)
    for number in range(side * side):
        centre = (np.array(divmod(number, side)) + 0.5) * step + rng.integers(-4, 5, 2)
        rows = np.clip(y[inside] + int(centre[0]), 0, size - 1)
        labels[rows, np.clip(x[inside] + int(centre[1]), 0, size - 1)] = number + 1
    return labels


def ours(truth: np.ndarray, prediction: np.ndarray, thresholds_pct: tuple[int, ...]) -> list[list[int]]:
    """Return [tp, fp, fn] per threshold."""
    counts: list[list[int]] = match_counts(overlaps(truth, prediction), thresholds_pct).tolist()
    return counts


def our_pq(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return panoptic quality, IoU strictly above one half."""
    found = overlaps(truth, prediction)
    iou = found.iou[matched(found, 50, strict=True)]
    return float(2 * iou.sum() / (len(found.truth_px) + len(found.prediction_px)))


def by_stardist(truth: np.ndarray, prediction: np.ndarray, thresholds_pct: tuple[int, ...]) -> list[list[int]]:
    """Return [tp, fp, fn] per threshold."""
    from stardist.matching import matching

    found = matching(truth, prediction, thresh=[pct / 100 for pct in thresholds_pct])
    return [[one.tp, one.fp, one.fn] for one in found]


def by_cellpose(truth: np.ndarray, prediction: np.ndarray, thresholds_pct: tuple[int, ...]) -> list[list[int]]:
    """Return [tp, fp, fn] per threshold; the ids have no gaps."""
    from cellpose.metrics import average_precision

    _, *counts = average_precision([truth], [prediction], threshold=[pct / 100 for pct in thresholds_pct])
    return np.stack([one[0] for one in counts], axis=1).astype(int).tolist()


def looped_pq(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return panoptic quality by one full mask per nucleus, as hover_net's definition is usually written."""
    masks = {label: prediction == label for label in np.unique(prediction) if label}
    true_ids = [label for label in np.unique(truth) if label]
    iou_sum = 0.0
    for label in true_ids:
        mask = truth == label
        for other in np.unique(prediction[mask]):
            if other:
                iou = (mask & masks[other]).sum() / (mask | masks[other]).sum()
                iou_sum += iou if iou > 0.5 else 0
    return 2 * iou_sum / (len(true_ids) + len(masks))


def dense(labels: np.ndarray) -> np.ndarray:
    """Number the objects 1..n: a disc may be covered wholly."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of every call; the calls take turns, so that a slow moment of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def figure(mine: list[float], theirs: list[float], equal: bool) -> dict[str, Any]:
    """Return medians, their ratio, and the ratio of the fastest, which other work on the machine disturbs least."""
    return {
        "ours_ms": round(1000 * statistics.median(mine), 2),
        "peer_ms": round(1000 * statistics.median(theirs), 2),
        "ratio": round(statistics.median(theirs) / statistics.median(mine), 1),
        "ratio_of_fastest": round(min(theirs) / min(mine), 1),
        "repeats": len(theirs),
        "results_equal": equal,
    }


def against_counts(size: int, nuclei: int, repeats: int, count: Callable[..., list[list[int]]]) -> dict[str, Any]:
    """Time ours and a peer over the same thresholds."""
    maps = dense(discs(size, nuclei, 0)), dense(discs(size, nuclei, 1))
    equal = ours(*maps, EXACT) == count(*maps, EXACT)
    seconds = turns({"ours": partial(ours, *maps, SWEEP), "peer": partial(count, *maps, SWEEP)}, repeats)
    return figure(seconds["ours"], seconds["peer"], equal)


def against_full_masks(size: int, nuclei: int, repeats: int) -> dict[str, Any]:
    """Time ours over all thresholds and panoptic quality at its one threshold by full masks."""
    maps = dense(discs(size, nuclei, 0)), dense(discs(size, nuclei, 1))
    equal = bool(np.isclose(our_pq(*maps), looped_pq(*maps), rtol=1e-9, atol=0))
    seconds = turns({"ours": partial(ours, *maps, SWEEP), "peer": partial(looped_pq, *maps)}, repeats)
    return figure(seconds["ours"], seconds["peer"], equal)


def large() -> dict[str, Any]:
    """Time ours over all thresholds before and after stardist's one threshold at 4096 px."""
    maps = dense(discs(4096, 20_000, 0)), dense(discs(4096, 20_000, 1))
    call = partial(ours, *maps, SWEEP)
    mine = turns({"ours": call}, 9)["ours"]
    start = time.perf_counter()
    theirs = by_stardist(*maps, (50,))
    peer = time.perf_counter() - start
    mine += turns({"ours": call}, 9)["ours"]
    return figure(mine, [peer], ours(*maps, (50,)) == theirs)


def peak_mb(size: int, nuclei: int) -> float:
    """Return the peak memory of this process after our matching; only meaningful before any other case."""
    ours(discs(size, nuclei, 0), discs(size, nuclei, 1), SWEEP)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="add 4096 px with 20,000 nuclei (10 GB)")
    with_large = parser.parse_args().large
    figures: dict[str, Any] = {
        "load average before": round(os.getloadavg()[0], 2),
        "peak MB of ours at 4096 px, 20,000 nuclei": peak_mb(4096, 20_000),
        "thresholds": len(SWEEP),
        "512 px, 200 nuclei, stardist": against_counts(512, 200, 61, by_stardist),
        "512 px, 200 nuclei, cellpose": against_counts(512, 200, 61, by_cellpose),
        "512 px, 200 nuclei, PQ by full masks": against_full_masks(512, 200, 15),
        "1024 px, 1250 nuclei, stardist": against_counts(1024, 1250, 15, by_stardist),
        "1024 px, 1250 nuclei, cellpose": against_counts(1024, 1250, 15, by_cellpose),
        "2048 px, 5000 nuclei, stardist": against_counts(2048, 5000, 5, by_stardist),
        "2048 px, 5000 nuclei, cellpose": against_counts(2048, 5000, 5, by_cellpose),
    }
    if with_large:
        figures["4096 px, 20,000 nuclei, stardist with one threshold"] = large()
    command = "OMP_NUM_THREADS=1 python benchmarks/speed/matching.py" + (" --large" if with_large else "")
    for name, value in figures.items():
        print(name, value)
    print(write("matching_speed", command, figures, "stardist", "cellpose"))


if __name__ == "__main__":
    main()
