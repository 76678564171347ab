"""Start a plugin: fill in the template of a third-party distribution."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

from .errors import ConfigError, OutputExists
from .resources import locate

_SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TOKEN = re.compile(r"TEMPLATE_(PACKAGE|NAME|CLASS)")
_LEFT_OUT = {"__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache"}


def new_plugin(name: str, folder: str | Path | None = None) -> Path:
    """Write a complete plugin distribution: package, registry, tests, README.

    Parameters
    ----------
    name : lower-case letters and digits, joined by hyphens; users will say ``--segmenter NAME``
    folder : to be made; None makes ``stainbridge-NAME`` in the working folder

    Returns
    -------
    The new folder, absolute.

    Raises
    ------
    ConfigError
        If `name` has another form, or an installed segmenter has it.
    OutputExists
        If there is something at `folder` already.
    WriteFailed
        If the folder cannot be written; nothing is left behind.
    """
    from .io.atomic import atomic_folder

    _check_name(name)
    target = Path(os.path.abspath(f"stainbridge-{name}" if folder is None else folder))
    if os.path.lexists(target):
        raise OutputExists(f"{str(target)!r} exists already.\nName another folder, or remove it first.")
    with atomic_folder(target, mark="pyproject.toml") as new:
        for path, content in _filled(locate("template"), _words(name)):
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_text(content, encoding="utf-8")
    return target


def _check_name(name: str) -> None:
    from .discovery import catalog

    if not _SLUG.fullmatch(name):
        asked = f"A plugin's name is made of lower-case letters and digits, joined by hyphens; found {name!r}."
        raise ConfigError(f"{asked}\n{_suggestion(name)}")
    taken = next((one for one in catalog().found if (one.kind, one.name) == ("segmenter", name)), None)
    if taken is not None:
        raise ConfigError(
            f"{taken.distribution} provides a segmenter {name!r} already, and of two with one name neither is used.\n"
            f"Take another name, such as 'my-{name}'."
        )
    package = _words(name)["PACKAGE"]
    if importlib.util.find_spec(package) is not None:
        raise ConfigError(
            f"A Python package {package!r} is installed already; the plugin {name!r} would have the same.\n"
            f"Take another name, such as 'my-{name}'."
        )


def _suggestion(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-").lstrip("0123456789-")
    return f"Try {slug!r}." if slug else "Try 'my-segmenter'."


def _words(name: str) -> dict[str, str]:
    """Return what stands for each token of the template."""
    title = "".join(part.capitalize() for part in name.split("-"))
    return {"PACKAGE": f"stainbridge_{name.replace('-', '_')}", "NAME": name, "CLASS": f"{title}Segmenter"}


def _filled(template: Path, words: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the relative path and the text of each file, tokens replaced in both."""

    def fill(text: str) -> str:
        return _TOKEN.sub(lambda token: words[token[1]], text)

    for path in sorted(template.rglob("*")):
        relative = path.relative_to(template)
        if path.is_file() and not _LEFT_OUT.intersection(relative.parts):
            yield fill(relative.as_posix()), fill(path.read_text(encoding="utf-8"))
