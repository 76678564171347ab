"""What a registry says about a weight file, and whether a file is that one."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Protocol

from stainbridge.errors import RegistryError


class WeightLike(Protocol):
    """A weight file as the registry describes it."""

    @property
    def file(self) -> str:
        """Bare file name, by which a plugin is given it."""
        ...

    @property
    def sha256(self) -> str:
        """64 lower-case hexadecimal digits."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def sources(self) -> tuple[str, ...]:
        """Where it can be had, in the order to try."""
        ...


def difference(path: Path, weight: WeightLike) -> str:
    """Return how a file differs from the registered size and sha256; an empty string where it does not."""
    size = path.stat().st_size
    if size != weight.size:
        return f"{size:,} bytes instead of {weight.size:,} (expected sha256 {weight.sha256})"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == weight.sha256 else f"sha256 {found} instead of {weight.sha256}"


def check_entry(weight: WeightLike) -> None:
    """Raise RegistryError for a hash or a name that could lead out of the cache."""
    if not re.fullmatch(r"[0-9a-f]{64}", weight.sha256):
        raise RegistryError(f"sha256 of {weight.file!r} must be 64 lower-case hex digits; found {weight.sha256!r}.")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", weight.file):
        raise RegistryError(f"A weight file must have a bare file name; found {weight.file!r}.")


def named(weight: WeightLike) -> str:
    """Return the name for messages: file, expected hash, size."""
    return f"{weight.file!r} (sha256 {weight.sha256}, {weight.size:,} bytes)"
