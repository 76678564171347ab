"""Pictures that are looked at and not learned from, by patterns of their names."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from ..errors import ConfigError, NoPictures
from .sources import Listed, Opened, Usable
from .truths import UsableTruth

U = TypeVar("U", Usable, UsableTruth)


def split(opened: Opened[U], patterns: Sequence[str]) -> tuple[Sequence[U], Sequence[U]]:
    """Return the pictures of a side that are learned from, and those that are held out.

    Raises
    ------
    NoPictures
        If all of them are held out.
    """
    learned: list[U] = []
    held: list[U] = []
    for one in opened.usable:
        (held if any(matches(pattern, one.listed.file) for pattern in patterns) else learned).append(one)
    if not learned:
        raise NoPictures(
            f"The {held[0].listed.side} side is empty: watch.held_out = {list(patterns)} holds out all of it."
        )
    return learned, held


def matches(pattern: str, file: str) -> bool:
    """Tell whether a pattern names a file, listed as its path below the folder that was given.

    A pattern without "/" is held against the file's name, one with "/" against the ends of its path: "case_07/*" and "ihc/case_07/"
    name everything in that folder.
    """
    if "/" not in pattern:
        return fnmatch.fnmatch(file.rpartition("/")[2], pattern)
    pattern = pattern.removeprefix("./")
    pattern += "*" if pattern.endswith("/") else ""
    return any(fnmatch.fnmatch(end, pattern) for end in _ends(file))


def check_each_matches(patterns: Sequence[str], sides: Mapping[str, Opened[U]]) -> None:
    """Refuse patterns that name no picture.

    Raises
    ------
    ConfigError
        With the nearest names, or why the pictures that it names cannot be used.
    """
    files = [one.listed.file for side in sides.values() for one in side.usable]
    for pattern in patterns:
        if any(matches(pattern, file) for file in files):
            continue
        unusable = [one for side in sides.values() for one in side.skipped if matches(pattern, one.file)]
        if unusable:
            raise ConfigError(
                f"watch.held_out: {pattern!r} names only pictures that cannot be used.\n  {unusable[0].file}: {unusable[0].reason}"
            )
        raise ConfigError(
            f"watch.held_out: {pattern!r} names none of the {len(files)} pictures of {' and '.join(sides)}.{_advice(pattern, files)}\n"
            f"A pattern without '/' is held against names of files, one with '/' against ends of paths such as {files[0]!r}."
        )


def names_of(held: Mapping[str, Sequence[Usable | UsableTruth]]) -> dict[str, list[str]]:
    """Return the listed files of each side."""
    return {side: [_listed(one).file for one in pictures] for side, pictures in held.items()}


def _listed(one: Usable | UsableTruth) -> Listed:
    return one.listed


def _advice(pattern: str, files: Sequence[str]) -> str:
    folders = {part for file in files for part in file.split("/")[:-1]}
    if "/" not in pattern and any(fnmatch.fnmatch(folder, pattern) for folder in folders):
        return f" It is the name of a folder: write {pattern + '/*'!r}."
    known = dict.fromkeys(
        end for file in files for end in (_ends(file) if "/" in pattern else [file.rpartition("/")[2]])
    )
    close = difflib.get_close_matches(pattern.strip("*"), list(known), n=3, cutoff=0.4) or list(known)[:3]
    return f" Nearest: {', '.join(map(repr, close))}."


def _ends(file: str) -> Iterator[str]:
    """Yield a path and its ends, down to the folder that the file is in."""
    parts = file.split("/")
    for start in range(max(1, len(parts) - 1)):
        yield "/".join(parts[start:])
