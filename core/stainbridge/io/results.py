"""Write a result as a folder that is there whole or not at all, and give its scores anew later."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stainbridge.errors import UnreadablePicture
from stainbridge.records import Nuclei, Result, Source

from .atomic import atomic_folder, atomic_write, check_vacant, take_back, write_failed
from .geojson import rewrite_geojson, write_geojson
from .overlay import Overview, mirrored, write_overlay
from .tables import read_parquet, write_csv, write_parquet
from .tiff import open_labels
from .tiles import STEP_PX, write_labels, write_tiff

SUMMARY = "summary.json"
OVERLAY = "overlay.png"
OUTDATED_OVERLAY = "overlay_before_rescoring.png"


@dataclass(frozen=True)
class Rewritten:
    """What `rewrite_scores` did.

    Parameters
    ----------
    written : names of the files that hold the new scores
    outdated : names of the files that show older calls, as they could not be made anew: ``overlay_before_rescoring.png``
    """

    written: tuple[str, ...]
    outdated: tuple[str, ...]


def save(result: Result, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a result and return its folder, which appears in one step when everything in it is on the disk.

    The folder holds ``labels.ome.tif`` (uint16 or uint32 ids), ``nuclei.parquet``, ``nuclei.csv``, ``nuclei.geojson``
    for QuPath, ``overlay.png``, with a translation ``virtual_he.png``, and ``summary.json`` with scores, provenance and
    the SHA-256 of each file. Of a picture of more than 4096 px a side, a PNG is a reduced overview; the virtual H&E is then
    also ``virtual_he.ome.tif`` at full size. The same result gives the same bytes; other pictures give other ids.

    Parameters
    ----------
    folder : parents are made where they are missing
    overwrite : replace an older result, which stays until the new one is whole

    Raises
    ------
    OutputExists
        If `folder` exists and `overwrite` is False, or it exists and is not a result.
    WriteFailed
        If the disk is full or read-only, or permission is lacking; nothing is left behind.
    """
    folder = Path(folder)
    picture = _identity(result)
    with atomic_folder(folder, overwrite=overwrite, mark=SUMMARY) as new:
        largest = int(result.nuclei.label.max(initial=0))
        write_labels(new / "labels.ome.tif", result.labels, largest, picture=picture)
        write_parquet(new / "nuclei.parquet", result.nuclei)
        write_csv(new / "nuclei.csv", result.nuclei)
        write_geojson(new / "nuclei.geojson", result.labels, result.nuclei, picture=picture)
        write_overlay(new / "overlay.png", result.source, result.labels, result.nuclei)
        if result.he is not None:
            _write_he(new, result.he, picture)
        files = {path.name: _sha256(path) for path in new.iterdir()}
        _write_summary(new / SUMMARY, result.scores, result.provenance, files)
    return folder


def check_output(folder: str | Path, *, overwrite: bool = False) -> None:
    """Raise `OutputExists` now, before hours of work, where `save` would raise it."""
    check_vacant(Path(folder), overwrite=overwrite, mark=SUMMARY)


def load_nuclei(folder: str | Path) -> tuple[Nuclei, dict[str, Any]]:
    """Read the nuclei and the summary of a saved result.

    Returns
    -------
    tuple
        The nuclei, and ``{"scores": ..., "provenance": ..., "files": ...}``.

    Raises
    ------
    UnreadablePicture
        If the folder holds no result, or one of the two files is damaged.
    """
    folder = Path(folder)
    take_back(folder)
    nuclei = read_parquet(folder / "nuclei.parquet")
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnreadablePicture(f"{str(folder)!r} holds no result: {SUMMARY} is missing.") from None
    except (OSError, ValueError) as error:
        raise UnreadablePicture(f"{str(folder / SUMMARY)!r} is damaged: {error}.\nRun the picture again.") from error
    if not isinstance(summary, dict) or not {"scores", "provenance", "files"} <= summary.keys():
        raise UnreadablePicture(f"{str(folder / SUMMARY)!r} lacks scores, provenance or files.\nRun the picture again.")
    return nuclei, summary


def rewrite_scores(
    folder: str | Path,
    nuclei: Nuclei,
    scores: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    source: Source | None = None,
) -> Rewritten:
    """Write new calls and scores into a saved result; outlines, labels and virtual H&E stay.

    Each file is replaced in one step, the summary last: where that was cut short, the summary's SHA-256 tell.

    Parameters
    ----------
    nuclei : the same labels as before
    source : the picture, to draw the overlay anew; with None, or one of another size, the old overlay is kept under the
        name ``overlay_before_rescoring.png``, until one can be drawn

    Raises
    ------
    UnreadablePicture
        If the folder holds no result, or one with other nuclei.
    WriteFailed
        If a file could not be written; it is then still the old one.
    """
    folder = Path(folder)
    old, summary = load_nuclei(folder)
    if not np.array_equal(old.label, nuclei.label):
        raise UnreadablePicture(
            f"{str(folder)!r} holds {len(old)} nuclei, and not the same as the {len(nuclei)} given.\n"
            "Run the picture again."
        )
    writers: dict[str, Callable[[Path], None]] = {
        "nuclei.geojson": lambda new: rewrite_geojson(folder / "nuclei.geojson", new, nuclei),
        "nuclei.parquet": partial(write_parquet, nuclei=nuclei),
        "nuclei.csv": partial(write_csv, nuclei=nuclei),
    }
    labels = open_labels(folder / "labels.ome.tif")
    if source is not None and source.shape == labels.shape:
        writers[OVERLAY] = partial(write_overlay, source=source, labels=labels, nuclei=nuclei)
    for name, write in writers.items():
        with atomic_write(folder / name) as new:
            write(new)
    outdated = _put_aside(folder, redrawn=OVERLAY in writers)
    files = {name: known for name, known in summary["files"].items() if name not in (OVERLAY, OUTDATED_OVERLAY)}
    files |= {name: _sha256(folder / name) for name in (*writers, *outdated)}
    with atomic_write(folder / SUMMARY) as new:
        _write_summary(new, scores, provenance, files)
    return Rewritten((*writers, SUMMARY), outdated)


def _put_aside(folder: Path, *, redrawn: bool) -> tuple[str, ...]:
    """Leave one overlay: the one drawn now, or the last one under a name that says that it is old; return that name."""
    old = folder / OUTDATED_OVERLAY
    try:
        if redrawn:
            old.unlink(missing_ok=True)
        elif (folder / OVERLAY).exists():
            (folder / OVERLAY).replace(old)
    except OSError as error:
        raise write_failed(old, error) from error
    return (old.name,) if old.exists() else ()


def _identity(result: Result) -> str:
    """Return what tells the picture from others: the SHA-256 of its file or pixels, or its name where there is none."""
    facts = result.provenance.get("input", {})
    return str(facts.get("sha256") or facts.get("sha256_of_pixels") or result.source.name)


def _write_he(folder: Path, he: Source, picture: str) -> None:
    overview = Overview(he.shape)
    blocks = mirrored(he, overview, STEP_PX)
    if overview.factor > 1:
        path = folder / "virtual_he.ome.tif"
        write_tiff(path, blocks, shape=(*he.shape, 3), dtype=np.uint8, mpp=he.mpp, picture=picture)
    else:
        for _ in blocks:
            continue
    overview.write(folder / "virtual_he.png")


def _write_summary(path: Path, scores: Mapping[str, Any], provenance: Mapping[str, Any], files: dict[str, str]) -> None:
    summary = _plain({"scores": scores, "provenance": provenance, "files": files})
    text = json.dumps(summary, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: numpy's numbers and arrays as plain ones, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
