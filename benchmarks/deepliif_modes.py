"""How much the ways to run DeepLIIF's networks differ: statistics of each tile or of the training, dropout off or on.

python benchmarks/deepliif_modes.py FOLDER PICTURES... [--set version=current] [--device cpu]

FOLDER holds the networks (latest_net_G1.pth and so on, or G1.pt and so on). PICTURES are IHC at 0.25 um/px, or folders of it; of a strip
of the data set (six squares in a row) the first is taken. Each mode is held against statistics of each tile without dropout, the
default: grey levels of the segmentation, pixels that are nucleus in one and not in the other, and nuclei. Networks that some releases
serialise have no statistics of the training; those modes are left out then. Prints the table, and writes
benchmarks/results/deepliif_modes.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from machine import write
from rich.console import Console
from rich.table import Table

from stainbridge import RGB
from stainbridge.config import overridden
from stainbridge.errors import WeightsCorrupt
from stainbridge.io import find_pictures, open_picture
from stainbridge_plugins.deepliif.differences import MODES, Difference, differences
from stainbridge_plugins.deepliif.segmenter import DeepLIIF

NAMES = {
    ("batch", False): "statistics of each tile",
    ("batch", True): "statistics of each tile, dropout",
    ("running", False): "statistics of the training",
    ("running", True): "statistics of the training, dropout",
}


def read(given: Sequence[str]) -> list[RGB]:
    """Return the pictures, of a strip the first square."""
    pictures = [open_picture(path, mpp=0.25) for path in find_pictures(given)]
    pixels = [one.read(0, 0, *one.shape) for one in pictures]
    return [one[:, : one.shape[0]] if one.shape[1] == 6 * one.shape[0] else one for one in pixels]


def compared(config: DeepLIIF.Config, pictures: Iterable[RGB], device: str) -> list[Difference]:
    """Return a row for each mode that the files allow."""
    pictures = list(pictures)
    own = differences(config, pictures, modes=[mode for mode in MODES if mode[0] == "batch"], device=device)
    try:
        return own + differences(
            config, pictures, modes=[mode for mode in MODES if mode[0] == "running"], device=device
        )
    except WeightsCorrupt as error:
        if "no statistics of the training" not in str(error):
            raise
        Console(stderr=True).print(f"Left out: {error}", markup=False)
        return own


def table(rows: Iterable[Difference]) -> Table:
    """Return the rows for people."""
    shown = Table(title="against statistics of each tile, without dropout")
    for column in ("mode", "grey levels, mean", "largest", "changed pixels", "nuclei", "positive"):
        shown.add_column(column, justify="left" if column == "mode" else "right")
    for row in rows:
        figures = f"{row.mean_grey:.3f}", f"{row.max_grey}", f"{row.changed_px:.3%}", f"{row.nuclei}", f"{row.positive}"
        shown.add_row(NAMES[row.mode], *figures)
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args(arguments)
    pictures = read(asked.pictures)
    config = DeepLIIF.Config(path=asked.folder, **overridden({}, asked.settings, example="version=current"))
    rows = compared(config, pictures, asked.device)
    Console(width=120).print(table(rows))
    figures = {
        "version": config.version,
        "settings": ", ".join(asked.settings) or "as they are",
        "device": asked.device,
        "pictures": len(pictures),
        "modes": {NAMES[row.mode]: {key: value for key, value in asdict(row).items() if key != "mode"} for row in rows},
    }
    print(write("deepliif_modes", "python benchmarks/deepliif_modes.py FOLDER PICTURES", figures, "torch"))


if __name__ == "__main__":
    main()
