"""Time instance matching against stardist.matching on the same labels, in one process, calls interleaved.

python benchmarks/speed/matching.py [--large]

Needs stardist (TensorFlow is not used). Writes benchmarks/results/matching_speed.json. `--large` adds 4096 px with 20,000
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
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import write

from stainbridge.overlap import match_counts, overlaps

SWEEP = tuple(range(50, 100, 5))
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


def ours(truth: np.ndarray, prediction: np.ndarray, thresholds_pct: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return (tp, fp, fn) per threshold."""
    return [tuple(row) for row in match_counts(overlaps(truth, prediction), thresholds_pct).tolist()]


def theirs(truth: np.ndarray, prediction: np.ndarray, thresholds_pct: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return (tp, fp, fn) per threshold."""
    from stardist.matching import matching

    found = matching(truth, prediction, thresh=[pct / 100 for pct in thresholds_pct])
    return [(one.tp, one.fp, one.fn) for one in found]


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    """Time one call."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def compare(size: int, nuclei: int, repeats: int, peer_sweep: tuple[int, ...]) -> dict[str, Any]:
    """Time both on one pair of label maps; the peer over `peer_sweep`, ours over `SWEEP`."""
    truth, prediction = discs(size, nuclei, 0), discs(size, nuclei, 1)
    checked = EXACT if peer_sweep == SWEEP else peer_sweep
    equal = ours(truth, prediction, checked) == theirs(truth, prediction, checked)
    mine_s, peer_s = [], []
    for _ in range(repeats):
        mine_s += [seconds(ours, truth, prediction, SWEEP) for _ in range(3)]
        peer_s.append(seconds(theirs, truth, prediction, peer_sweep))
    mine, peer = statistics.median(mine_s), statistics.median(peer_s)
    return {
        "size_px": size,
        "nuclei": int(truth.max()),
        "thresholds_ours": len(SWEEP),
        "thresholds_peer": len(peer_sweep),
        "ours_ms": round(1000 * mine, 2),
        "peer_ms": round(1000 * peer, 2),
        "ratio": round(peer / mine, 1),
        "ratio_of_fastest": round(min(peer_s) / min(mine_s), 1),
        "counts_equal": equal,
        "repeats": repeats,
    }


def peak_mb(size: int, nuclei: int) -> float:
    """Return the peak memory of this process after our matching; only meaningful before any other case."""
    ours(discs(size, nuclei, 0), discs(size, nuclei, 1), SWEEP)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="add 4096 px with 20,000 nuclei (10 GB)")
    large = parser.parse_args().large
    load = os.getloadavg()[0]
    peak = peak_mb(4096, 20_000)
    cases = [compare(512, 200, 31, SWEEP), compare(1024, 1250, 15, SWEEP), compare(2048, 5000, 5, SWEEP)]
    if large:
        cases.append(compare(4096, 20_000, 1, (50,)))
    figures = {
        "load average before": round(load, 2),
        "peak MB of ours at 4096 px, 20,000 nuclei": peak,
        **{f"{case['size_px']} px": case for case in cases},
    }
    command = "python benchmarks/speed/matching.py" + (" --large" if large else "")
    print(figures)
    print(write("matching_speed", command, figures, "stardist"))


if __name__ == "__main__":
    main()
