"""Time instance matching against what others do on the same labels: one process, one thread, calls interleaved, medians.

OMP_NUM_THREADS=1 python benchmarks/speed/matching.py [--large]

Needs stardist (TensorFlow is not used) and cellpose. Writes benchmarks/results/matching_speed.json. `--large` adds 4096 px with 20,000
nuclei, where stardist takes about 10 GB and half a minute for its one threshold.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import medians, write

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


def compare(
    size: int, nuclei: int, repeats: int, peers: tuple[str, ...], peer_sweep: tuple[int, ...]
) -> dict[str, Any]:
    """Time all on one pair of label maps: ours over `SWEEP`, the others over `peer_sweep` or their one threshold."""
    truth, prediction = dense(discs(size, nuclei, 0)), dense(discs(size, nuclei, 1))
    calls = {"ours": partial(ours, truth, prediction, SWEEP)}
    equal = {}
    for peer in peers:
        if peer == "full masks":
            calls[peer] = partial(looped_pq, truth, prediction)
            equal[peer] = bool(np.isclose(our_pq(truth, prediction), calls[peer](), rtol=1e-9, atol=0))
            continue
        count = {"stardist": by_stardist, "cellpose": by_cellpose}[peer]
        calls[peer] = partial(count, truth, prediction, peer_sweep)
        checked = EXACT if peer_sweep == SWEEP else peer_sweep
        equal[peer] = ours(truth, prediction, checked) == count(truth, prediction, checked)
    seconds = medians(calls, repeats=repeats)
    return {
        "size_px": size,
        "nuclei": int(truth.max()),
        "thresholds_ours": len(SWEEP),
        "thresholds_peers": len(peer_sweep),
        "ms": {name: round(1000 * value, 2) for name, value in seconds.items()},
        "ratio": {name: round(seconds[name] / seconds["ours"], 1) for name in peers},
        "results_equal": equal,
        "repeats": repeats,
    }


def large() -> dict[str, Any]:
    """Time ours often and stardist once, with one threshold, on 4096 px: before and after it, for the machine may change."""
    truth, prediction = dense(discs(4096, 20_000, 0)), dense(discs(4096, 20_000, 1))
    call = partial(ours, truth, prediction, SWEEP)
    before = medians({"ours": call}, repeats=9)["ours"]
    start = time.perf_counter()
    theirs = by_stardist(truth, prediction, (50,))
    peer = time.perf_counter() - start
    mine = max(before, medians({"ours": call}, repeats=9)["ours"])
    return {
        "size_px": 4096,
        "nuclei": int(truth.max()),
        "thresholds_ours": len(SWEEP),
        "thresholds_peers": 1,
        "ms": {"ours": round(1000 * mine, 2), "stardist": round(1000 * peer, 2)},
        "ratio": {"stardist": round(peer / mine, 1)},
        "results_equal": {"stardist": ours(truth, prediction, (50,)) == theirs},
        "repeats": 1,
    }


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
        "512 px": compare(512, 200, 41, ("stardist", "cellpose", "full masks"), SWEEP),
        "1024 px": compare(1024, 1250, 15, ("stardist", "cellpose"), SWEEP),
        "2048 px": compare(2048, 5000, 5, ("stardist", "cellpose"), SWEEP),
    }
    if with_large:
        figures["4096 px"] = large()
    command = "OMP_NUM_THREADS=1 python benchmarks/speed/matching.py" + (" --large" if with_large else "")
    for name, figure in figures.items():
        print(name, figure)
    print(write("matching_speed", command, figures, "stardist", "cellpose"))


if __name__ == "__main__":
    main()
