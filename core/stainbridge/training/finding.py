"""The files that folders, files and patterns name, without what trainings have written among them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from ..errors import NoPictures
from ..io import find_pictures
from .sources import Skipped

MARK = "training.json"
"""The file that makes a folder that of a training."""


def find_files(
    side: str, inputs: Sequence[Path], *, out: Path | None = None
) -> tuple[list[tuple[Path, str]], list[Skipped]]:
    """Return the files that folders (with those inside), files and patterns name, each with its path below what was named.

    Parameters
    ----------
    side : for messages: "ihc" or "he"
    out : folder of the training

    Returns
    -------
    files : without those in the folder of a training, `out` or one with a `MARK`: grids are no pictures to learn from; a file that is
        named itself is taken wherever it lies
    skipped : those, with the reason

    Raises
    ------
    NoPictures
        If something that was named does not exist, holds no picture, or only those of trainings.
    """
    found: dict[Path, str] = {}
    skipped: dict[Path, Skipped] = {}
    for given in inputs:
        paths = _paths(side, given)
        for path in paths:
            file = f"{given.name}/{path.relative_to(given).as_posix()}" if given.is_dir() else path.name
            run = _run_of(path, given, out)
            if run is None:
                found.setdefault(path, file)
            else:
                skipped.setdefault(path, Skipped(side, file, f"it lies in {str(run)!r}, the folder of a training"))
        if all(path in skipped for path in paths):
            raise NoPictures(
                f"The {side} side is empty: {str(given)!r} holds only what a training wrote.\n"
                f"Name pictures, slides or folders of them with --{side}."
            )
    return list(found.items()), [one for path, one in skipped.items() if path not in found]


def _paths(side: str, given: Path) -> list[Path]:
    folder = given.is_dir()
    try:
        paths = find_pictures([f"{glob.escape(str(given))}/**/*" if folder else given])
    except NoPictures:
        paths = []
    if not paths or not (folder or paths[0].exists()):
        fault = "holds no picture, nor do the folders in it" if folder else "does not exist"
        raise NoPictures(
            f"The {side} side is empty: {str(given)!r} {fault}.\nName pictures, slides or folders of them with --{side}."
        )
    return paths


def _run_of(path: Path, given: Path, out: Path | None) -> Path | None:
    """Return the folder of a training that a file lies in, at or below the folder that was named or that a pattern starts from."""
    if path == given:
        return None
    start = given
    while not start.is_dir():
        start = start.parent
    above = [folder for folder in path.parents if folder == start or start in folder.parents]
    own = None if out is None else out.resolve()
    return next((one for one in above if (one / MARK).is_file() or (own is not None and one.resolve() == own)), None)
