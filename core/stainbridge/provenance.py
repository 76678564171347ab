"""What it takes to make a result again: configuration, versions, hashes, commit, device.

Nothing here depends on when it was run, so the same run writes the same bytes.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import RunConfig
from .records import Image, Source

if TYPE_CHECKING:
    from .discovery import Built
    from .interfaces import Plugin

LIBRARIES = ("numpy", "scipy", "scikit-image", "pillow", "tifffile", "torch", "tensorflow", "cellpose", "stardist")


def describe(
    source: Source,
    built: Mapping[str, Built | None],
    config: RunConfig,
    segmentation: Mapping[str, Any],
    *,
    fitted: Mapping[str, Plugin | None],
) -> dict[str, Any]:
    """Return the provenance of one result as plain JSON values.

    Parameters
    ----------
    built : the plugins used, by kind; None for a stage that was skipped
    segmentation : facts of the tiled pass
    fitted : plugins as fitted to this picture, by kind; where their settings differ they are given under ``fitted``
    """
    return {
        "input": describe_input(source),
        "plugins": {kind: one and _facts(one, fitted.get(kind)) for kind, one in built.items()},
        "config": config.to_dict(),
        "segmentation": dict(segmentation),
        "software": deepcopy(software()),
        "device": config.device,
    }


def _facts(built: Built, fitted: Plugin | None) -> dict[str, Any]:
    facts = dict(built.facts)
    if fitted is not None and fitted.config != built.plugin.config:
        facts["fitted"] = fitted.config.model_dump(mode="json")
    return facts


def describe_input(source: Source) -> dict[str, Any]:
    """Return name, size, scale and sha256 of the input: of the file where there is one, else of the pixels."""
    path = getattr(source, "path", None)
    facts: dict[str, Any] = {"name": source.name, "shape": list(source.shape), "mpp": source.mpp}
    if path is not None:
        with open(path, "rb") as file:
            return facts | {
                "path": str(Path(path).resolve()),
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    if isinstance(source, Image):
        return facts | {"sha256_of_pixels": hashlib.sha256(source.pixels.tobytes()).hexdigest()}
    return facts


@cache
def software() -> dict[str, Any]:
    """Return the versions of stainbridge, Python and the libraries that are installed, and the commit of a checkout."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "stainbridge": metadata.version("stainbridge"),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "libraries": versions,
    }


def commit() -> str | None:
    """Return the git commit of the checkout that stainbridge runs from, "-dirty" if changed; None for an installed wheel."""
    here = Path(__file__).resolve().parent
    root = here.parent.parent
    if not (root / ".git").exists() or root / "core" / "stainbridge" != here:
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
