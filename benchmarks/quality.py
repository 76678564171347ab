"""Hold translator x segmenter against truth, through `stainbridge.run`, at IoU 0.5.

python benchmarks/quality.py [FOLDER] [--translators identity deconvolution] [--segmenters baseline] [--name baseline_quality]

FOLDER holds ihc_deepliif (reading interior+outline, 0.25 um/px), he_monuseg (0.25), he_nucls (0.2) and he_dsb2018 (taken
as 0.25); it is `../shared/data` beside the checkout by default. H&E goes through `identity` only. Writes
benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import write
from rich.console import Console
from rich.table import Table
from skimage.io import imread

import stainbridge
from stainbridge.datasets.deepliif import read_sample
from stainbridge.overlap import dice_counts, match_counts, overlaps
from stainbridge.records import Image, Labels, Sample

IHC = ("22_2_IHC", "34_3_IHC", "6_2_IHC", "Lung1")
HE_MPP = {"he_monuseg": 0.25, "he_nucls": 0.2, "he_dsb2018": 0.25}


def ihc_samples(data: Path) -> Iterator[Sample]:
    """Yield the four DeepLIIF tiles."""
    for name in IHC:
        yield read_sample(data / "ihc_deepliif" / f"{name}.png")


def he_samples(folder: Path, mpp: float) -> Iterator[Sample]:
    """Yield every picture of `folder` with its label map."""
    for path in sorted(folder.glob("*_labels.png")):
        truth = np.unique(imread(path), return_inverse=True)[1].reshape(imread(path).shape).astype(np.int32)
        pixels = imread(path.with_name(path.name.replace("_labels", "")))[..., :3]
        yield Sample(Image(pixels, mpp, path.stem.removesuffix("_labels")), Labels(truth, mpp))


def counts(sample: Sample, translator: str, segmenter: str) -> np.ndarray:
    """Return tp, fp, fn, and pixels in both, in truth, in the prediction."""
    result = stainbridge.run(sample.source, translator=translator, segmenter=segmenter)
    found = overlaps(sample.truth.array, result.labels.read(0, 0, *result.labels.shape))
    return np.concatenate([match_counts(found, [50])[0], dice_counts(found)])


def rates(row: np.ndarray) -> dict[str, float]:
    """Return F1, precision, recall and Dice of summed counts; 0 where nothing was found."""
    tp, fp, fn, both, truth, found = (int(value) for value in row)
    return {
        "f1": 2 * tp / max(2 * tp + fp + fn, 1),
        "precision": tp / max(tp + fp, 1),
        "recall": tp / max(tp + fn, 1),
        "dice": 2 * both / max(truth + found, 1),
    }


def measure(samples: list[Sample], translator: str, segmenter: str) -> dict[str, Any]:
    """Return rates per picture, pooled, and the mean Dice."""
    rows = {sample.source.name: counts(sample, translator, segmenter) for sample in samples}
    pictures = {name: rates(row) for name, row in rows.items()}
    mean = float(np.mean([picture["dice"] for picture in pictures.values()]))
    return {"pooled": rates(np.sum(list(rows.values()), axis=0)), "mean_dice": mean, "pictures": pictures}


def show(figures: dict[str, Any], console: Console) -> None:
    """Print one row per picture and one for the whole of each combination."""
    table = Table("data", "translator x segmenter", "picture", "F1", "precision", "recall", "Dice", "mean Dice")
    for key, entry in figures.items():
        data, combination = key.split(": ")
        for name, rate in entry["pictures"].items():
            table.add_row(data, combination, name, *(f"{value:.3f}" for value in rate.values()))
        pooled = (f"[bold]{value:.3f}[/]" for value in entry["pooled"].values())
        table.add_row(data, combination, "[bold]pooled[/]", *pooled, f"{entry['mean_dice']:.3f}", end_section=True)
    console.print(table)


def main() -> None:
    """Measure, print, write."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=beside)
    parser.add_argument("--translators", nargs="+", default=["identity", "deconvolution"])
    parser.add_argument("--segmenters", nargs="+", default=["baseline"])
    parser.add_argument("--name", default="baseline_quality")
    asked = parser.parse_args()
    figures = {}
    ihc = list(ihc_samples(asked.folder))
    he = {name: list(he_samples(asked.folder / name, mpp)) for name, mpp in HE_MPP.items()}
    for segmenter in asked.segmenters:
        for translator in asked.translators:
            figures[f"ihc_deepliif: {translator} x {segmenter}"] = measure(ihc, translator, segmenter)
        for name, samples in he.items():
            figures[f"{name}: identity x {segmenter}"] = measure(samples, "identity", segmenter)
    show(figures, Console())
    write(asked.name, " ".join(["python benchmarks/quality.py", *sys.argv[1:]]), figures, "scikit-image", "scipy")


if __name__ == "__main__":
    main()
