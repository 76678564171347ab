"""Find the pictures that files, folders and patterns name."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from stainbridge.errors import NoPictures

SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif")
"""Suffixes of the slides that OpenSlide reads; the other pictures are known by their content."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", *SLIDES)
"""Suffixes that are looked for in folders and patterns, in either case."""

RESULT = ("summary.json", "nuclei.parquet")
"""The files that mark a folder as a result of ours; its pictures are outputs, not inputs."""


def find_pictures(inputs: Iterable[str | Path]) -> list[Path]:
    """List the pictures that `inputs` name, each once, in the order given and sorted within a folder or pattern.

    Parameters
    ----------
    inputs : files (taken as they are: what is wrong with one is said when it is opened), folders (the pictures
        directly inside), and patterns such as ``slides/*.png``; in folders and patterns, hidden files and the pictures
        of our own results are left out

    Raises
    ------
    NoPictures
        If there are no inputs, or a folder or a pattern holds no picture.
    """
    given = [str(entry) for entry in inputs]
    if not given:
        raise NoPictures("No picture was given.\nName pictures, folders, or patterns such as 'slides/*.png'.")
    found: dict[Path, Path] = {}
    for entry in given:
        for path in _pictures(entry):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _pictures(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        candidates, what = list(path.iterdir()), "The folder"
    elif not path.exists() and glob.has_magic(given):
        candidates, what = [Path(name) for name in glob.glob(given, recursive=True)], "The pattern"
    else:
        return [path]
    pictures = sorted(candidate for candidate in candidates if _is_input(candidate))
    if not pictures:
        raise NoPictures(
            f"{what} {given!r} holds no picture ({len(candidates)} other entries).\nLooked for {', '.join(SUFFIXES)}."
        )
    return pictures


def _is_input(path: Path) -> bool:
    if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES or not path.is_file():
        return False
    return not all((path.parent / name).is_file() for name in RESULT)
