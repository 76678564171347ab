"""Time the check of flows against cellpose 3's own on the same masks and flows, in one process, calls taking turns.

python benchmarks/speed/cellpose_masks.py

1024 px with 1,250 touching nuclei, their own flows times 5 with noise. The errors must be the same numbers, or it stops. "masks"
is the whole drawing: following the flows, the check, filling holes. Writes benchmarks/results/cellpose_masks.json.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cellpose import dynamics, metrics, utils

from stainbridge.testing.synthetic import synthetic_labels
from stainbridge_plugins.cellpose.flow_check import flow_errors, without_bad_flows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import medians, write

CPU = torch.device("cpu")


def ours(flows: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """Draw masks with our check."""
    masks = dynamics.compute_masks(flows, logit, flow_threshold=0, device=CPU)
    return utils.fill_holes_and_remove_small_masks(without_bad_flows(masks, flows, 0.4, device=CPU), min_size=-1)


def theirs(flows: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """Draw masks with cellpose's check."""
    return dynamics.resize_and_compute_masks(flows, logit, flow_threshold=0.4, min_size=-1, device=CPU)


def main() -> None:
    """Compare, time, write."""
    warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
    labels = synthetic_labels((1024, 1024), 1250, rng=1, gap_px=0, mpp=0.42).array.astype(np.uint16)
    noise = np.random.default_rng(0).normal(0, 2, (2, *labels.shape))
    flows = (5 * dynamics.masks_to_flows_cpu(labels)[0] + noise).astype(np.float32)
    logit = np.where(labels > 0, 5, -5).astype(np.float32)
    if not np.array_equal(flow_errors(labels, flows), metrics.flow_error(labels, flows, CPU)[0]):
        raise SystemExit("The errors differ.")
    if not np.array_equal(ours(flows, logit), theirs(flows, logit)):
        raise SystemExit("The masks differ.")
    seconds = medians(
        {
            "check": partial(flow_errors, labels, flows),
            "check, cellpose": partial(metrics.flow_error, labels, flows, CPU),
            "masks": partial(ours, flows, logit),
            "masks, cellpose": partial(theirs, flows, logit),
        }
    )
    ratios = {name: seconds[f"{name}, cellpose"] / seconds[name] for name in ("check", "masks")}
    print({name: round(value, 3) for name, value in seconds.items()}, {name: round(v, 2) for name, v in ratios.items()})
    write(
        "cellpose_masks",
        "python benchmarks/speed/cellpose_masks.py",
        {"seconds": seconds, "ratios": ratios},
        "cellpose",
    )


if __name__ == "__main__":
    main()
