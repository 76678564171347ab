"""Take the figures of a benchmark's folder into benchmarks/results.

stainbridge benchmark benchmarks/suites/ihc_tiles.toml -o tiles && python benchmarks/suite_table.py tiles

Writes results/NAME.json: for each combination the pooled values, their 95 % intervals over pictures, and the seconds per stage; and the
paired differences of F1 from the suite's reference translators under the same segmenter.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from machine import write

from stainbridge.scores import Scores

F1 = "matching/f1@0.50"
SHOWN = {
    "dice/dice_pooled": "Dice",
    F1: "F1",
    "panoptic/pq": "PQ",
    "aji/aji_plus": "AJI+",
    "detection/f1": "detection F1",
    "positivity/kappa": "kappa of calls",
    "preservation/centroid_recall": "nuclei kept by the translation",
    "preservation/brown_retention": "brown nuclei kept",
    "preservation/density_agreement": "density agreement",
}


def figures_of(cell: Scores) -> dict[str, Any]:
    """Return the shown values as text with their intervals, and seconds per picture."""
    found: dict[str, Any] = {}
    for key, title in SHOWN.items():
        value = cell.pooled.get(key)
        if value is not None and value == value:
            low, high = cell.intervals.get(key, (float("nan"),) * 2)
            found[title] = f"{value:.3f} [{low:.3f}, {high:.3f}]"
    stages = {stage for image in cell.done for stage in image.seconds}
    for stage in sorted(stages):
        found[f"s per picture, {stage}"] = sum(image.seconds.get(stage, 0) for image in cell.done) / len(cell.done)
    return found


def differences_of(folder: Path, references: list[str]) -> dict[str, Any]:
    """Return the differences of F1 from the reference translators under one segmenter, as text with their intervals, by "a minus b"."""

    def counts(a: str, b: str) -> bool:
        (mine, segmenter), (theirs, other) = (method.split(" + ", 1) for method in (a, b))
        earlier = references[: references.index(mine)] if mine in references else references
        return segmenter == other and theirs in earlier

    with (folder / "differences.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["value"] == F1]
    return {
        f"{row['dataset']}: {row['a']} minus {row['b']}": {
            "difference of F1": f"{float(row['difference']):+.3f} [{float(row['low']):+.3f}, {float(row['high']):+.3f}]"
        }
        for row in rows
        if " + " in row["a"] and " + " in row["b"] and counts(row["a"], row["b"])
    }


def main() -> None:
    """Read, write."""
    folder = Path(sys.argv[1])
    suite = json.loads((folder / "suite.json").read_text("utf-8"))
    files = sorted(folder.glob("cells/*/scores.json"), key=lambda path: path.stat().st_mtime_ns)
    cells = [Scores.from_dict(json.loads(path.read_text("utf-8"))) for path in files]
    figures = {f"{one.combination.dataset}: {one.combination.method}": figures_of(one) for one in cells if one.done}
    figures |= differences_of(folder, suite["reference"])
    name = suite["name"].replace("-", "_")
    command = f"stainbridge benchmark benchmarks/suites/{name}.toml -o tiles && python benchmarks/suite_table.py tiles"
    write(name, command, figures, "torch", "cellpose", "stardist")


if __name__ == "__main__":
    main()
