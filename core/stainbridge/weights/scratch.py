"""Folders for unverified bytes, each for one process at a time."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .turns import turn


@contextmanager
def scratch_folder(cache: Path, key: str, *, patience_s: float) -> Iterator[Path]:
    """Give a folder below `cache` that nobody else uses; interrupted downloads of the same key are still in it.

    Waits for another process that is at work on the key for as long as that one gets on; after `patience_s` seconds
    without any progress of it the folder is a fresh one. Raises OSError where the cache cannot be written.
    """
    area = cache / "unverified"
    area.mkdir(parents=True, exist_ok=True)
    shared = area / key
    with turn(area / f"{key}.lock", patience_s=patience_s, progress=lambda: _bytes_below(shared)) as mine:
        scratch = shared if mine else area / f"{key}-{secrets.token_hex(4)}"
        scratch.mkdir(exist_ok=True)
        tidy(scratch)
        try:
            yield scratch
        finally:
            if not mine:
                shutil.rmtree(scratch, ignore_errors=True)
            elif scratch.is_dir() and not any(scratch.iterdir()):
                scratch.rmdir()


def tidy(scratch: Path, keep: str = "") -> None:
    """Remove all but interrupted downloads, with what is noted about them (and the suffix `keep`)."""
    for path in scratch.iterdir():
        if path.suffix in (".part", keep) or (path.suffix == ".validator" and path.with_suffix(".part").exists()):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _bytes_below(folder: Path) -> int:
    """Return the bytes in a folder that another process may be changing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return total
