"""Where things lie: the files that stainbridge ships, and the plugins that other distributions announce."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import StainbridgeError
from .hookspecs import GROUP

_IN_CHECKOUT = {"registry.toml": "registry.toml", "template": "plugins/template"}


class BrokenInstallation(StainbridgeError, FileNotFoundError):
    """A file that stainbridge ships is not there."""


@dataclass(frozen=True)
class Announced:
    """One entry point of the group `stainbridge`; nothing is imported.

    Parameters
    ----------
    name, value : as in ``name = "package.module"``
    distribution, version : who announces it
    failure : why the entry points of this distribution cannot be read, or an empty string
    """

    name: str
    value: str
    distribution: str
    version: str
    failure: str = ""


def locate(name: str) -> Path:
    """Return the path of "registry.toml" or "template": inside the installed package, or in a checkout.

    Raises
    ------
    BrokenInstallation
        If it is in neither place.
    """
    package = Path(__file__).resolve().parent
    places = [package / name, package.parents[1] / _IN_CHECKOUT[name]]
    for place in places:
        if place.exists():
            return place
    looked = " nor ".join(str(place) for place in places)
    raise BrokenInstallation(
        f"stainbridge's own {name!r} is neither at {looked}.\nRun: pip install --force-reinstall stainbridge"
    )


def announced() -> tuple[Announced, ...]:
    """Return the entry points of the group, sorted by distribution; a distribution counts once per name."""
    found: list[Announced] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        entries = list(_entries(distribution))
        # The first copy on sys.path is the one that would be imported.
        key = re.sub(r"[-_.]+", "-", entries[0].distribution).lower() if entries else ""
        if entries and key not in seen:
            seen.add(key)
            found += entries
    return tuple(sorted(found, key=lambda entry: (entry.distribution.lower(), entry.name)))


def registry_file(entry: Announced) -> Path | None:
    """Return the `registry.toml` beside the module of an entry point, found without importing it.

    For ``package.sub.module`` these folders are looked at in turn: that of the module, of `sub`, of `package`.
    """
    first, *rest = entry.value.split(":")[0].strip().split(".")
    spec = importlib.util.find_spec(first) if first.isidentifier() else None
    if spec is None:
        return None
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    if not folders and spec.has_location and spec.origin:
        folders = [Path(spec.origin).parent]
    candidates = [folder.joinpath(*rest[:depth]) for depth in range(len(rest), -1, -1) for folder in folders]
    return next((folder / "registry.toml" for folder in candidates if (folder / "registry.toml").is_file()), None)


def _entries(distribution: importlib.metadata.Distribution) -> Iterator[Announced]:
    try:
        entries = [(entry.name, entry.value) for entry in distribution.entry_points if entry.group == GROUP]
        failure = ""
    except Exception as error:  # a stranger's metadata may be anything
        text = distribution.read_text("entry_points.txt") or ""
        entries = [("?", "")] if f"[{GROUP}]" in text else []
        failure = f"its entry_points.txt cannot be read: {type(error).__name__}: {error}"
    if not entries:
        return
    name, version = _identity(distribution)
    for key, value in entries:
        yield Announced(key, value, name, version, failure)


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    try:
        return distribution.metadata["Name"] or "unknown", distribution.metadata["Version"] or "unknown"
    except Exception:  # no METADATA, or one that is no text
        return "unknown", "unknown"
