"""Facts of the machine that a figure was made on, and paired timings in one process."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def facts(*libraries: str) -> dict[str, Any]:
    """Return processor, cores, Python and the versions of `libraries`."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in ("stainbridge", "numpy", *libraries)},
    }


def medians(calls: Mapping[str, Callable[[], Any]], *, repeats: int = 7) -> dict[str, float]:
    """Return the median seconds of each call; the calls take turns, so a slow moment of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        call()
        del name
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def write(name: str, command: str, figures: Any, *libraries: str) -> Path:
    """Write figures with their command and machine to `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {"command": command, "machine": facts(*libraries), "figures": figures}
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path
